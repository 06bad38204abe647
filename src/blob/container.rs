//! A file under `loose/`: a segment of small blobs, or one large blob.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::blob::table::Place;
use crate::error::{Error, Result};

pub struct Container {
    pub file: File,
    pub path: PathBuf,
}

impl Container {
    pub fn path_of(loose: &Path, number: u32, place: Place) -> PathBuf {
        loose.join(format!("{number:08x}.{}", place.suffix()))
    }

    pub fn open(loose: &Path, number: u32, place: Place) -> Result<Container> {
        let path = Container::path_of(loose, number, place);
        let file = File::options().read(true).write(true).open(&path).map_err(Error::io("open", &path))?;
        Ok(Container { file, path })
    }

    /// Fills `out` from `offset` on.
    ///
    /// Errors: `Corrupt` if the file is too short, `Io`.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(out, offset).map_err(|e| {
            if e.kind() == std::io::ErrorKind::UnexpectedEof {
                Error::Corrupt { what: self.path.display().to_string(), why: "it is cut off".into() }
            } else {
                Error::Io { doing: "read", path: self.path.clone(), source: e }
            }
        })
    }
}

/// The containers there are, by name; anything else in `loose/` is passed over.
pub fn list(loose: &Path) -> Result<Vec<(u32, Place)>> {
    let entries = fs::read_dir(loose).map_err(Error::io("list", loose))?;
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("list", loose))?.file_name();
        found.extend(name.to_str().and_then(parse_name));
    }
    Ok(found)
}

/// Splits a name in `loose/` into number and kind; `None` for anything that is not ours.
fn parse_name(name: &str) -> Option<(u32, Place)> {
    let (number, suffix) = name.split_once('.')?;
    let place = [Place::Segment, Place::Object].into_iter().find(|p| p.suffix() == suffix)?;
    Some((u32::from_str_radix(number, 16).ok()?, place))
}
