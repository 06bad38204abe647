//! Containers that hold content, and their names. Under `loose/` a container is a segment of small
//! blobs or one large blob, under `packs/` it is a pack.

use crate::blob::backend::{Backend, Key, Shelf};
use crate::error::Result;

/// The kind of a container. It also decides what a record's offset means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a segment with other blobs, at the record's offset. The outline lies right before the blob.
    Segment,
    /// In a file of its own. The outline lies in the segment `outline_in`, at the record's offset.
    Object,
    /// In a pack. The record's offset is one in the unpacked stream of its frames. The outline begins with
    /// the pack's value number `outline_in`.
    Pack,
}

/// All places.
const PLACES: [Place; 3] = [Place::Segment, Place::Object, Place::Pack];

impl Place {
    pub fn suffix(self) -> &'static str {
        match self {
            Place::Segment => "seg",
            Place::Object => "obj",
            Place::Pack => "pack",
        }
    }

    /// The shelf of its containers.
    pub fn shelf(self) -> Shelf {
        match self {
            Place::Segment | Place::Object => Shelf::Loose,
            Place::Pack => Shelf::Packs,
        }
    }

    /// The name of the container with this number.
    pub fn key(self, number: u32) -> Key {
        Key { shelf: self.shelf(), name: format!("{number:08x}.{}", self.suffix()) }
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

/// The containers of a store, by name. Other files in their directories are ignored.
///
/// # Errors
///
/// `Io`.
pub fn list(backend: &dyn Backend) -> Result<Vec<(u32, Place)>> {
    let mut found = Vec::new();
    for shelf in Shelf::CONTENT {
        let names = backend.list(shelf)?;
        found.extend(names.iter().filter_map(|name| parse_name(name)).filter(|(_, p)| p.shelf() == shelf));
    }
    Ok(found)
}

/// Splits a container's name into number and kind. `None` for any other name.
fn parse_name(name: &str) -> Option<(u32, Place)> {
    let (number, suffix) = name.split_once('.')?;
    let place = PLACES.into_iter().find(|p| p.suffix() == suffix)?;
    let number = u32::from_str_radix(number, 16).ok()?;
    (place.key(number).name == name).then_some((number, place))
}
