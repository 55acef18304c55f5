//! Lists in messages: as many entries as a person reads.

/// Entries that are told.
const FEW: usize = 10;

/// The first few of a list, and in the words of `rest` how many more there are: a node with a thousand listeners says a thousand times
/// that no file is left, and nobody reads that.
pub fn first_few(mut told: Vec<String>, rest: impl FnOnce(usize) -> String) -> Vec<String> {
    let more = told.len().saturating_sub(FEW);
    if more > 0 {
        told.truncate(FEW);
        told.push(rest(more));
    }
    told
}

/// The rest of a list in a sentence.
pub fn and_more(more: usize) -> String {
    format!("and {more} more")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_to_its_first_and_a_count() {
        let list = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        assert_eq!(first_few(list(10), and_more), list(10));
        let cut = first_few(list(1000), and_more);
        assert_eq!(
            (&cut[..10], cut[10].as_str()),
            (&list(10)[..], "and 990 more")
        );
        assert_eq!(cut.len(), 11);
    }
}
