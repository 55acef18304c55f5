//! Lists in messages: as many entries as a person reads.

/// Entries that are told.
const FEW: usize = 10;

/// The first few of a list, and how many more there are: a node with a thousand listeners says a thousand times that no file is left,
/// and nobody reads that.
pub fn first_few(mut told: Vec<String>) -> Vec<String> {
    let more = told.len().saturating_sub(FEW);
    if more > 0 {
        told.truncate(FEW);
        told.push(format!("and {more} more"));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_to_its_first_and_a_count() {
        let list = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        assert_eq!(first_few(list(10)), list(10));
        let cut = first_few(list(1000));
        assert_eq!(
            (&cut[..10], cut[10].as_str()),
            (&list(10)[..], "and 990 more")
        );
        assert_eq!(cut.len(), 11);
    }
}
