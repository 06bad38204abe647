//! Objects that hold content, and their names: under `loose/` a segment of small blobs or one large blob, under
//! `packs/` a pack.

use crate::blob::backend::{Backend, Key, Shelf};
use crate::error::Result;

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

    /// Where it lies.
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

/// The containers of a store, by name; anything else in their directories is passed over.
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

/// Splits a container's name into number and kind; `None` for anything that is not ours.
fn parse_name(name: &str) -> Option<(u32, Place)> {
    let (number, suffix) = name.split_once('.')?;
    let place = PLACES.into_iter().find(|p| p.suffix() == suffix)?;
    let number = u32::from_str_radix(number, 16).ok()?;
    (place.key(number).name == name).then_some((number, place))
}
