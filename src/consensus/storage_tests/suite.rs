//! openraft's storage suite on both engines.

use std::sync::Arc;

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use crate::consensus::{
    engine_memory::MemoryEngine,
    log_store::LogStore,
    machine_store::MachineStore,
    storage::{Storage, StorageHandles, StorageOptions},
    types::TypeConfig,
};

type Guard = (TempDir, StorageHandles);

#[derive(Clone, Copy)]
enum Builder {
    Sled,
    Memory,
    /// Keeps no entry in memory that the engine has: every read goes to the engine.
    SledWithoutCache,
}

impl StoreBuilder<TypeConfig, LogStore, MachineStore, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, MachineStore), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let mut options = StorageOptions {
            ballast: Some(0),
            ..StorageOptions::default()
        };
        let opened = match self {
            Self::Sled => Storage::open(dir.path(), options),
            Self::SledWithoutCache => {
                options.recent_bytes = 0;
                Storage::open(dir.path(), options)
            }
            Self::Memory => Storage::open_on(dir.path(), options, Arc::new(MemoryEngine::new())),
        };
        let (log, machine, handles) = opened.unwrap();
        Ok(((dir, handles), log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sled_passes() {
    Suite::test_all(Builder::Sled).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sled_without_a_cache_passes() {
    Suite::test_all(Builder::SledWithoutCache).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_passes() {
    Suite::test_all(Builder::Memory).await.unwrap();
}
