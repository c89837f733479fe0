//! How many bytes an import may write.

use std::sync::atomic::{AtomicU64, Ordering};

use super::ImportError;

/// What is left, shared by all layers.
#[derive(Debug)]
pub(super) struct Budget {
    max: Option<u64>,
    spent: AtomicU64,
}

impl Budget {
    pub(super) fn new(max: Option<u64>) -> Self {
        Self {
            max,
            spent: AtomicU64::new(0),
        }
    }

    /// Takes `bytes` for the layer called `layer`.
    pub(super) fn spend(&self, bytes: u64, layer: &str) -> Result<(), ImportError> {
        let spent = self.spent.fetch_add(bytes, Ordering::Relaxed);
        match self.max {
            Some(max) if spent.saturating_add(bytes) > max => Err(ImportError::TooLarge {
                layer: layer.to_owned(),
                max,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left() {
        let budget = Budget::new(Some(10));
        assert!(budget.spend(10, "a").is_ok());
        assert!(budget.spend(0, "a").is_ok());
        let error = budget.spend(1, "layer b").unwrap_err().to_string();
        assert!(
            error.starts_with("layer b:") && error.contains("10 bytes"),
            "{error}"
        );
        assert!(Budget::new(None).spend(u64::MAX, "a").is_ok());
    }
}
