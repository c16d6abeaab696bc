//! Which images come in an epoch, and in which order.

use std::collections::BTreeMap;

use super::{
    augmentation::Stream,
    plan::{Balance, Sampling},
};

/// Of the stream that orders an epoch, so that it is none of the images' own.
const ORDER: u64 = u64::MAX;

/// What is known of an image for sampling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Its class.
    pub(super) class: usize,
    /// Its site, where it has one.
    pub(super) site: Option<String>,
}

/// The indices (into `groups`) of the images of one epoch, in their order; an image may come more than once or not at
/// all. The same seed and epoch give the same order.
pub(super) fn order(groups: &[Group], sampling: Sampling, seed: u64, epoch: u64) -> Vec<usize> {
    let mut stream = Stream::new(seed, epoch, ORDER);
    let mut of_class: BTreeMap<usize, BTreeMap<Option<&str>, Vec<usize>>> = BTreeMap::new();
    for (idx, group) in groups.iter().enumerate() {
        let site = if sampling.equal_sites { group.site.as_deref() } else { None };
        of_class.entry(group.class).or_default().entry(site).or_default().push(idx);
    }
    let size = |sites: &BTreeMap<Option<&str>, Vec<usize>>| sites.values().map(Vec::len).sum::<usize>();
    let largest = of_class.values().map(size).max().unwrap_or(0);
    let smallest = of_class.values().map(size).min().unwrap_or(0);
    let mut chosen = Vec::new();
    for sites in of_class.values() {
        let wanted = match sampling.classes {
            Balance::AsListed => size(sites),
            Balance::Oversample => largest,
            Balance::Undersample => smallest,
        };
        let n_sites = sites.len();
        for (site_idx, images) in sites.values().enumerate() {
            // Shares that do not divide are given to the first sites.
            let share = wanted / n_sites + usize::from(site_idx < wanted % n_sites);
            chosen.extend(draw(images, share, &mut stream));
        }
    }
    stream.shuffle(&mut chosen);
    chosen
}

/// So many of the images: each as often as the others but for one time.
fn draw(images: &[usize], wanted: usize, stream: &mut Stream) -> Vec<usize> {
    let mut drawn = Vec::with_capacity(wanted);
    while drawn.len() < wanted {
        let mut round = images.to_vec();
        stream.shuffle(&mut round);
        round.truncate(wanted - drawn.len());
        drawn.extend(round);
    }
    drawn
}

/// Cuts an epoch into batches of `batch_size` images or fewer and of like size. None has a single image, of which batch
/// normalisation can make nothing, unless there is only one or that is what is asked for; rather has one more image than
/// asked for.
pub(super) fn batches(order: &[usize], batch_size: usize) -> Vec<Vec<usize>> {
    let wanted = order.len().div_ceil(batch_size.max(1));
    let n_batches = if batch_size > 1 { wanted.min((order.len() / 2).max(1)) } else { wanted };
    let bounds = |batch: usize| batch * order.len() / n_batches.max(1);
    (0..n_batches).map(|batch| order.get(bounds(batch)..bounds(batch + 1)).unwrap_or_default().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 6 of class 0 (one of them of site `b`), 2 of class 1.
    fn groups() -> Vec<Group> {
        (0..8)
            .map(|idx| Group {
                class: usize::from(idx >= 6),
                site: Some(if idx == 0 { "b".to_owned() } else { "a".to_owned() }),
            })
            .collect()
    }

    fn counts(order: &[usize]) -> Vec<usize> {
        (0..8).map(|idx| order.iter().filter(|found| **found == idx).count()).collect()
    }

    #[test]
    fn every_image_comes_once_unless_told_otherwise() {
        let first = order(&groups(), Sampling::default(), 1, 0);
        assert_eq!(counts(&first), [1; 8]);
        assert_eq!(first, order(&groups(), Sampling::default(), 1, 0));
        assert_ne!(first, order(&groups(), Sampling::default(), 1, 1));
    }

    #[test]
    fn classes_and_sites_are_balanced() {
        let oversampled = Sampling { classes: Balance::Oversample, equal_sites: false };
        assert_eq!(counts(&order(&groups(), oversampled, 1, 0))[6..], [3, 3]);
        let undersampled = Sampling { classes: Balance::Undersample, equal_sites: false };
        let chosen = order(&groups(), undersampled, 1, 0);
        assert_eq!((chosen.len(), counts(&chosen)[6..].to_vec()), (4, vec![1, 1]));
        let equal = Sampling { classes: Balance::AsListed, equal_sites: true };
        let found = counts(&order(&groups(), equal, 1, 0));
        assert_eq!((found[0], found[1..6].iter().sum::<usize>()), (3, 3), "{found:?}");
    }

    #[test]
    fn batches_are_of_like_size() {
        let sizes = |n: usize, batch_size| {
            batches(&(0..n).collect::<Vec<_>>(), batch_size).iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(9, 8), [4, 5]);
        assert_eq!(sizes(16, 8), [8, 8]);
        assert_eq!(sizes(3, 2), [3]);
        assert_eq!(sizes(5, 2), [2, 3]);
        assert_eq!(sizes(2, 1), [1, 1]);
        assert_eq!(sizes(1, 8), [1]);
        assert_eq!(sizes(0, 8), Vec::<usize>::new());
    }
}
