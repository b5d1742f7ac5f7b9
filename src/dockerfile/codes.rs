//! What the codes of Dockerfile diagnostics mean: `keelway explain CODE`. D00xx and D01xx are of this crate, D02xx
//! of the image crate, which plans what this one has read. `tests/tidy.rs` holds the table against both.

use crate::lint::Rule;

/// Every code with what it means and how to mend it; lint rules say it themselves.
pub const CODES: &[(&str, &str)] = &[
    (
        "D0001",
        "A bound was reached: the file or one line of it is longer than is read, or it has more instructions or stages than are planned. Move long scripts and data into files that the Dockerfile copies.",
    ),
    (
        "D0002",
        "A parser directive (`# escape=`, `# syntax=`, `# check=`) stands twice or has a value that it cannot have. Directives stand once, at the very top.",
    ),
    (
        "D0003",
        "The first word of the line is no instruction. The message names the nearest one. When the line belongs to the one before, that one must end in the escape character (\\, or what `# escape=` says).",
    ),
    (
        "D0004",
        "A flag (--name=value before the arguments) does not exist for this instruction, stands twice, or has no fitting value; or a --mount has an option that its type does not take.",
    ),
    (
        "D0005",
        "The instruction has too few, too many or malformed arguments. The message says what it takes.",
    ),
    (
        "D0006",
        "A heredoc (<<NAME) is not closed by a line that holds its name alone, or stands where none can be: as a destination, or under a name that is no file name.",
    ),
    (
        "D0007",
        "A Dockerfile begins with FROM; only ARG, comments and directives may stand before the first one. It must have at least one FROM.",
    ),
    (
        "D0008",
        "The name after AS cannot be the name of a stage: a letter first, then letters, digits, '-', '_' or '.'.",
    ),
    (
        "D0009",
        "The arguments look like a JSON array and are not one of strings only; SHELL takes nothing else. Strings stand in double quotes, and a backslash is written twice.",
    ),
    (
        "D0010",
        "HEALTHCHECK is NONE alone, or flags, CMD and a command. Times are written like 30s and are at least 1ms, retries are a whole number.",
    ),
    (
        "D0011",
        "ONBUILD takes one instruction, which may not be ONBUILD, FROM or MAINTAINER. For an image from elsewhere, the message names it: its maker must mend it.",
    ),
    (
        "D0012",
        "`# syntax=` asks for a frontend other than docker/dockerfile. Keelway reads the language itself and runs no other frontend: remove the line, and what only that frontend understands.",
    ),
    (
        "D0101",
        "A `# check=` directive or comment names a lint rule that does not exist, or is not understood; it has no effect. Rules are named as docs/dockerfile.md has them, case matters, several stand between commas without spaces.",
    ),
    (
        "D0102",
        "A Dockerfile has more lint findings than are shown. Mend the first ones, or switch off at its head what is not wanted: `# check=skip=RULE,RULE`.",
    ),
    (
        "D0201",
        "Valid, and not executed by this version of Keelway. It is refused before anything runs, rather than ignored. docs/dockerfile.md lists all of it.",
    ),
    (
        "D0202",
        "The stage to build (--target, or `target` in keelway.yml) does not exist in the Dockerfile. Stages are named by FROM .. AS name, or by their number from 0.",
    ),
    (
        "D0203",
        "--from names no stage before this one, and nothing that can be an image. A stage can only copy from stages above it.",
    ),
    (
        "D0204",
        "A variable cannot be replaced here: the expression is malformed, demands a value that is not set (${v:?}), or gives an empty text or a name where none can be.",
    ),
    (
        "D0205",
        "FROM gives something, after its variables are replaced, that is no image reference or no platform.",
    ),
    (
        "D0206",
        "A value is not what the instruction needs, after its variables are replaced: a port, user, signal, mode or path. The message says how it is written.",
    ),
    (
        "D0207",
        "An image was not pinned to a digest before the build was planned. This should not happen: please report it with the Dockerfile.",
    ),
    (
        "D0208",
        "A RUN asks for something that only the machine that builds can allow, such as the machine's own network. It is allowed on the command line (--allow host-network), never by a file.",
    ),
    (
        "D0210",
        "A --build-arg (or `args` in keelway.yml) that no ARG of the stages to build declares has no effect. Declare it by ARG in the stage that uses it, or remove it.",
    ),
    (
        "D0212",
        "A COPY --from= names no stage before it, and so an image, but a stage is called nearly the same. Correct the name; where an image is meant, write it in full, for example docker.io/library/build:1.",
    ),
    (
        "D0213",
        "A COPY or ADD names a file that the build context does not have, or that .dockerignore leaves out of it. Paths start at the context's folder, whatever the WORKDIR is.",
    ),
];

/// What a code or a lint rule means and how to mend it; `None` for what no Dockerfile diagnostic has. Case does not
/// matter.
pub fn explain(code: &str) -> Option<&'static str> {
    let code_of = |(c, text): &(&'static str, &'static str)| c.eq_ignore_ascii_case(code).then_some(*text);
    let rule = || Rule::ALL.iter().find(|r| r.name().eq_ignore_ascii_case(code)).map(|r| r.explain());
    CODES.iter().find_map(code_of).or_else(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_and_explained() {
        assert!(CODES.is_sorted_by(|a, b| a.0 < b.0));
        assert!(CODES.iter().all(|(_, text)| text.len() > 60 && text.ends_with('.')));
        assert!(explain("d0003").is_some_and(|text| text.contains("instruction")));
        assert_eq!(explain("D9999"), None);
        assert!(explain("stagenamecasing").is_some_and(|text| text.contains("stage")));
        assert!(Rule::ALL.iter().all(|r| r.explain().len() > 60 && r.explain().ends_with('.')));
    }
}
