//! Files that are replaced as a whole.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a temporary file beside `path` and renames it.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static FILES: AtomicU64 = AtomicU64::new(0);
    /// Where the search for a free name ends.
    const MOST_FILES: u64 = 1 << 20;

    if path.file_name().is_none() {
        return Err(io::Error::other("it does not name a file"));
    }
    // A process of the same number may have been killed while it wrote, as happens in containers.
    let (temporary, mut file) = loop {
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let name = format!(".batchnorm-{}-{number}.tmp", std::process::id());
        let temporary = path.with_file_name(name);
        match std::fs::File::create_new(&temporary) {
            Ok(file) => break (temporary, file),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < MOST_FILES => {}
            Err(error) => return Err(error),
        }
    };
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    drop(file);
    let renamed = written.and_then(|()| std::fs::rename(&temporary, path));
    if renamed.is_err() {
        // What went wrong first is what the caller hears of.
        let _ = std::fs::remove_file(&temporary);
    }
    renamed
}
