//! Modules in files of a development folder (PO-708): read again and again, so that a new build is there at once.

use std::{io::Read as _, path::PathBuf, sync::Arc, time::Duration};

use kubeocean_engine::{LoadCode, ModuleFetch};

use super::modules::failed;
use kubeocean_runtime::queue::Outcome;

/// How often a file is looked at. Nobody leases by such a module but its author.
const LOOK: Duration = Duration::from_secs(2);

/// The file below the folder.
pub(super) async fn read_dev_file(
    folder: Option<PathBuf>,
    path: &str,
    max_bytes: usize,
) -> (ModuleFetch, Outcome) {
    let path = path.to_owned();
    let read = move || match folder {
        Some(folder) => read(&folder, &path, max_bytes),
        None => failed(LoadCode::FetchForbidden, "there is no development folder"),
    };
    let fetched = tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|error| failed(LoadCode::FetchFailed, error.to_string()));
    (fetched, Outcome::After(LOOK))
}

fn read(folder: &std::path::Path, path: &str, max_bytes: usize) -> ModuleFetch {
    let of = |error: &std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => LoadCode::ModuleNotFound,
            std::io::ErrorKind::PermissionDenied => LoadCode::FetchForbidden,
            _ => LoadCode::FetchFailed,
        };
        failed(code, format!("{path}: {error}"))
    };
    let inside = folder.canonicalize().and_then(|folder| Ok((folder.join(path).canonicalize()?, folder)));
    let (file, folder) = match inside {
        Ok(found) => found,
        Err(error) => return of(&error),
    };
    if !file.starts_with(&folder) {
        return failed(LoadCode::FetchForbidden, format!("{path} leads out of the development folder"));
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
    match std::fs::File::open(&file).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() > max_bytes => {
            failed(LoadCode::TooLarge, format!("{path} is larger than the limit of {max_bytes} bytes"))
        }
        Ok(_) => ModuleFetch::Ready(Arc::<[u8]>::from(bytes).into()),
        Err(error) => of(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(fetch: &ModuleFetch) -> Option<LoadCode> {
        match fetch {
            ModuleFetch::Failed { code, .. } => Some(*code),
            _ => None,
        }
    }

    #[test]
    fn a_file_of_the_folder_is_read_and_nothing_else() {
        let home = std::env::temp_dir().join(format!("kubeocean-dev-file-{}", std::process::id()));
        let folder = home.join("dev");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("p.wasm"), b"\0asm").unwrap();
        std::fs::write(home.join("secret"), b"s").unwrap();
        std::os::unix::fs::symlink(home.join("secret"), folder.join("out")).unwrap();
        std::os::unix::fs::symlink(folder.join("p.wasm"), folder.join("in")).unwrap();
        let of = |path: &str, max| read(&folder, path, max);
        assert!(matches!(of("p.wasm", 4), ModuleFetch::Ready(module) if *module.bytes == *b"\0asm"));
        assert_eq!(code(&of("in", 4)), None, "a link within the folder");
        assert_eq!(code(&of("p.wasm", 3)), Some(LoadCode::TooLarge));
        assert_eq!(code(&of("out", 9)), Some(LoadCode::FetchForbidden));
        assert_eq!(code(&of("none", 9)), Some(LoadCode::ModuleNotFound));
        std::fs::remove_dir_all(home).unwrap();
    }
}
