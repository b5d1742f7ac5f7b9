//! The codes of pipeline diagnostics, and what each means: `keelway explain CODE`.

macro_rules! codes {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        $(
            #[doc = $text]
            pub const $name: &str = $code;
        )*
        /// Every code with what it means and how to mend it.
        pub const CODES: &[(&str, &str)] = &[$(($code, $text)),*];
    };
}

codes! {
    UNREADABLE = "K0001", "The pipeline file cannot be read. It is keelway.yml at the root of the repository, in the commit that runs.";
    ENCODING = "K0002", "The file is not plain UTF-8 text, or holds characters that make a text look like another one (NUL, control characters, bidirectional marks). Save it as UTF-8 and write such characters as escapes in double quotes, for example \"\\u202e\".";
    TOO_BIG = "K0003", "A bound was reached: 1 MiB of text, 64 levels, 50000 nodes with aliases written out. A pipeline file that needs more should be several pipelines.";
    SYNTAX = "K0004", "The text is not YAML. The place named is where the parser gave up; the cause is often a line above: a missing colon, a tab, a quote that is not closed.";
    DUPLICATE_KEY = "K0005", "A key stands twice in one map; YAML would silently keep one of them. Remove one.";
    DOCUMENTS = "K0006", "The file holds more than one YAML document (a line ---). One file is one pipeline.";
    TAG = "K0007", "A YAML tag (!name) has no meaning here. Values are texts, lists and maps; remove the tag.";
    ALIAS = "K0008", "An alias (*name) names an anchor that does not exist before it, or contains itself; or a merge key (<<) is not given a map.";
    UNKNOWN_KEY = "K0101", "The key does not exist at this place. Unknown keys are errors, so that a misspelt one is never silently ignored. docs/pipeline.md lists all keys.";
    LATER_KEY = "K0102", "The key belongs to the format, but this version of Keelway does not act on it yet. It is refused rather than ignored.";
    WRONG_TYPE = "K0103", "The value has the wrong shape: a text where a list is needed, and so on. The message says what is expected.";
    MISSING_KEY = "K0104", "A key that must be there is missing.";
    BAD_VALUE = "K0105", "The value has the right shape and the wrong content: a duration without a unit, a port over 65535, a malformed image reference. The message says how to write it.";
    VERSION = "K0106", "The first key is `version: 1`. Another number is a format that this version of Keelway does not know.";
    KIND = "K0107", "A stage does exactly one thing: it has exactly one of build, steps, push, deploy.";
    MISPLACED_KEY = "K0108", "The key exists, but not for a stage of this kind.";
    UNKNOWN_STAGE = "K0201", "A stage is named that the file does not have.";
    CYCLE = "K0202", "Stages need each other in a circle, so none could start.";
    NOT_NEEDED = "K0203", "A stage uses the image of another one that is not among its needs. Nothing is ordered implicitly: add it to `needs`.";
    STAGE_KIND = "K0204", "A stage is named that does not make what is needed: steps and push take the image of a build stage, deploy takes the digest of a push stage.";
    UNKNOWN_TARGET = "K0205", "A deploy names a target that `targets` does not have.";
    SELF_NEED = "K0206", "A stage needs itself.";
    REPEATED = "K0207", "The same item stands twice in a list.";
    UNUSED = "K0301", "Something is defined and never used: a target that no deploy names, a registry rule that no push or image refers to.";
    HOST_NETWORK = "K0302", "With `network: host` the steps of a stage share this machine's network: they reach its loopback, and whatever listens there takes them for a local program. `network: private`, which is the default, reaches out and nothing of the machine. A later version will ask the command line to allow it.";
}

/// What a code means and how to mend it; `None` for a code that no diagnostic of this crate has.
pub fn explain(code: &str) -> Option<&'static str> {
    CODES.iter().find(|(c, _)| c.eq_ignore_ascii_case(code)).map(|(_, text)| *text)
}
