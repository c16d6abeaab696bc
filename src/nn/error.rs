//! What can go wrong with networks once their bundle is known to be sound.

/// An error of loading or running networks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NnError {
    /// Weights that do not fit their network, or that changed since the bundle was opened.
    #[error("the networks of bundle `{bundle}` cannot be loaded:\n{}", problems.join("\n"))]
    Load {
        /// Name of the bundle.
        bundle: String,
        /// All of them, each naming the network and the remedy.
        problems: Vec<String>,
    },
    /// No such device on this machine, or not in this build.
    #[error("device `{device}` is not available: {reason}; set the device to `cpu` or to one that exists")]
    Device {
        /// The device asked for.
        device: String,
        /// Why not.
        reason: String,
    },
    /// The network does not offer this map of regions for one image or slice.
    #[error("network `{network}` has no map `{method}` of one image or slice: {offered}")]
    NotOffered {
        /// Which network.
        network: String,
        /// The method asked for.
        method: String,
        /// What it offers, in words.
        offered: String,
    },
    /// The operating system gives no thread.
    #[error("no thread can be started for network `{network}`: {reason}; raise the limit on threads")]
    Thread {
        /// Which network.
        network: String,
        /// What the system says.
        reason: String,
    },
    /// A bundle has no member of this index.
    #[error("the bundle has {n_members} members: there is no member of index {member_idx}")]
    NoSuchMember {
        /// The index asked for.
        member_idx: usize,
        /// How many there are.
        n_members: usize,
    },
    /// A bundle has no class of this index.
    #[error("the bundle has {n_classes} classes: there is no class of index {class_idx}")]
    NoSuchClass {
        /// The index asked for.
        class_idx: usize,
        /// How many there are.
        n_classes: usize,
    },
    /// The input has the wrong size.
    #[error(
        "network `{network}` takes {expected} samples, found {found}: resize the image to the side in the manifest"
    )]
    InputSize {
        /// Which network.
        network: String,
        /// Such as `3 x 224 x 224`.
        expected: String,
        /// The same of what came.
        found: String,
    },
    /// The input holds a NaN, an infinity, or a number beyond all measure.
    #[error(
        "the input of network `{network}` holds a sample that is not a number from -1000000 to 1000000 (index {sample_idx}): \
         check `mean` and `std` of its preprocessing"
    )]
    InputNotFinite {
        /// Which network.
        network: String,
        /// Index of the first one.
        sample_idx: usize,
    },
    /// The network computed a NaN or an infinity.
    #[error("network `{network}` computed a number that is not finite: its weights do not suit this input")]
    OutputNotFinite {
        /// Which network.
        network: String,
    },
    /// libtorch refused; its words, cut.
    #[error("network `{network}` fails: {words}")]
    Torch {
        /// Which network.
        network: String,
        /// At most [`MAX_ERROR_CHARACTERS`] characters.
        words: String,
    },
    /// The code that runs the network panicked; the thread lives on.
    #[error("network `{network}` panics: {words}")]
    Panic {
        /// Which network.
        network: String,
        /// At most [`MAX_ERROR_CHARACTERS`] characters.
        words: String,
    },
    /// The network failed again and again and is left alone for a while.
    #[error(
        "network `{network}` is taken out for {seconds} more seconds: it failed {failures} times in a row, the last time \
         with: {words}"
    )]
    TakenOut {
        /// Which network.
        network: String,
        /// Failures in a row.
        failures: u32,
        /// Until it is tried again.
        seconds: u64,
        /// The last failure.
        words: String,
    },
    /// Whoever asked has gone away before the answer was complete.
    #[error("nobody waits for the answer of network `{network}` any more")]
    Withdrawn {
        /// Which network.
        network: String,
    },
    /// The network's thread has ended or is ending.
    #[error("network `{network}` is being shut down and takes no more requests")]
    Stopped {
        /// Which network.
        network: String,
    },
}

/// libtorch's messages can print whole tensors: this much of them is kept.
pub(super) const MAX_ERROR_CHARACTERS: usize = 300;

impl NnError {
    /// Whether less work at once may succeed.
    pub(super) fn is_out_of_memory(&self) -> bool {
        let Self::Torch { words, .. } = self else { return false };
        memory_sign(words).is_some()
    }

    /// Wraps an error of libtorch, cutting its message.
    pub(super) fn torch(network: &str, error: &tch::TchError) -> Self {
        Self::Torch { network: network.to_owned(), words: cut(&error.to_string()) }
    }
}

/// What a failed allocation says of itself.
fn memory_sign(words: &str) -> Option<&'static str> {
    let words = words.to_ascii_lowercase();
    ["out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "status_alloc_failed"]
        .into_iter()
        .find(|sign| words.contains(sign))
}

/// Beginning and end of `text`, about [`MAX_ERROR_CHARACTERS`] characters, without the C++ stack trace: a TorchScript
/// program's error names its cause last. That memory did not suffice is never cut away.
pub(super) fn cut(text: &str) -> String {
    let text = text.split("\nException raised from").next().unwrap_or(text).trim();
    let n_characters = text.chars().count();
    if n_characters <= MAX_ERROR_CHARACTERS {
        return text.to_owned();
    }
    let head = MAX_ERROR_CHARACTERS / 3;
    let tail: String = text.chars().skip(n_characters - (MAX_ERROR_CHARACTERS - head)).collect();
    let short = format!("{} … {tail}", text.chars().take(head).collect::<String>());
    match memory_sign(text) {
        Some(sign) if memory_sign(&short).is_none() => format!("{sign}: {short}"),
        _ => short,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_between_characters() {
        let long = "ä".repeat(1000);
        assert_eq!(cut(&long).chars().count(), MAX_ERROR_CHARACTERS + 3);
        let of_script = format!("The following operation failed{}RuntimeError: the cause", "\n  a frame".repeat(50));
        assert!(cut(&of_script).ends_with("RuntimeError: the cause"));
        let words =
            cut(&format!("{}DefaultCPUAllocator: can't allocate memory{}", "frame ".repeat(80), " frame".repeat(80)));
        assert!(NnError::Torch { network: "n".to_owned(), words }.is_out_of_memory());
        assert_eq!(cut("short\nException raised from somewhere (0x55 and a whole stack)"), "short");
    }
}
