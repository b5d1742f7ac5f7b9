//! Nearest names and the words of other systems.

use keelway_model::Diagnostic;

/// Adds `did you mean`, or the list of what there is where nothing is near.
pub(crate) fn nearest<'a>(
    d: Diagnostic,
    given: &str,
    known: impl Iterator<Item = &'a str> + Clone,
    list: &str,
) -> Diagnostic {
    match nearest_name(given, known.clone()) {
        Some(name) => d.hint(format!("did you mean {name:?}?")),
        None => {
            let mut names: Vec<&str> = known.take(21).collect();
            if names.is_empty() {
                return d.hint("there are none".to_owned());
            }
            if names.len() > 20 {
                names[20] = "..";
            }
            d.hint(format!("{list} {}", names.join(", ")))
        }
    }
}

/// The nearest of the known names, where one is near enough to be meant.
pub(crate) fn nearest_name<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if given.len() > 100 {
        return None;
    }
    let lower = given.to_lowercase().replace('-', "_");
    known
        .filter(|k| k.len() <= 100)
        .map(|k| (strsim::osa_distance(&lower, &k.to_lowercase().replace('-', "_")), k))
        .filter(|(d, k)| {
            *d <= (k.chars().count().max(lower.chars().count()) / 3).max(1) && *d < lower.chars().count()
        })
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}
