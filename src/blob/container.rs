//! A file that holds content: under `loose/` a segment of small blobs or one large blob, under `packs/` a
//! pack.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use crate::error::{Error, Result};

/// What a container is, and with it how a record's offset is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Among others in a segment, at the record's offset; its outline lies right before it.
    Segment,
    /// A file of its own; its outline lies in the segment `outline_in`, at the record's offset.
    Object,
    /// In a pack, at the record's offset of what its frames unpack to; its outline begins with the pack's
    /// value number `outline_in`.
    Pack,
}

/// All there are.
const PLACES: [Place; 3] = [Place::Segment, Place::Object, Place::Pack];

impl Place {
    pub fn suffix(self) -> &'static str {
        match self {
            Place::Segment => "seg",
            Place::Object => "obj",
            Place::Pack => "pack",
        }
    }

    /// The directory of the store that it lies in.
    pub fn directory(self) -> &'static str {
        match self {
            Place::Segment | Place::Object => "loose",
            Place::Pack => "packs",
        }
    }

    pub fn code(self) -> u8 {
        match self {
            Place::Segment => 1,
            Place::Object => 2,
            Place::Pack => 3,
        }
    }

    pub fn of_code(code: u8) -> Option<Place> {
        PLACES.into_iter().find(|place| place.code() == code)
    }
}

pub struct Container {
    pub file: File,
    pub path: PathBuf,
}

impl Container {
    /// The file of a container, from the store's directory on.
    pub fn name_of(number: u32, place: Place) -> PathBuf {
        Path::new(place.directory()).join(format!("{number:08x}.{}", place.suffix()))
    }

    /// Opens a container of the store in `store` for reading.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn open(store: &Path, number: u32, place: Place) -> Result<Container> {
        let path = store.join(Container::name_of(number, place));
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        Ok(Container { file, path })
    }

    /// The file once more, to give ranges of it back. Reading goes on where nothing can be written.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn to_punch(&self) -> Result<File> {
        File::options().write(true).open(&self.path).map_err(Error::io("open", &self.path))
    }

    /// Fills `out` from `offset` on.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the file is too short, `Io`.
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

/// The containers of a store, by name; anything else in their directories is passed over.
///
/// # Errors
///
/// `Io`.
pub fn list(store: &Path) -> Result<Vec<(u32, Place)>> {
    let mut found = Vec::new();
    for sub in ["loose", "packs"] {
        let dir = store.join(sub);
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let name = entry.map_err(Error::io("list", &dir))?.file_name();
            found.extend(name.to_str().and_then(parse_name).filter(|(_, place)| place.directory() == sub));
        }
    }
    Ok(found)
}

/// Splits a container's name into number and kind; `None` for anything that is not ours.
fn parse_name(name: &str) -> Option<(u32, Place)> {
    let (number, suffix) = name.split_once('.')?;
    let place = PLACES.into_iter().find(|p| p.suffix() == suffix)?;
    let number = u32::from_str_radix(number, 16).ok()?;
    Container::name_of(number, place).ends_with(name).then_some((number, place))
}

/// Gives a range of a file back to the disk; it reads as zeros then.
///
/// # Errors
///
/// `Io`.
pub fn punch(file: &File, path: &Path, from: u64, len: u64) -> Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, len) {
        // A file system without holes keeps the space until the file goes.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(Error::Io { doing: "punch", path: path.to_owned(), source: e.into() }),
    }
}
