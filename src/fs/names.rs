//! What the bytes of a name mean.

use crate::base::name::is_ln_temporary;
use crate::error::Error;

/// A name as it is shown in messages.
pub(super) fn text_of(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// The name of a label, without its `@`.
pub(super) fn label_of(name: &[u8]) -> Option<&str> {
    std::str::from_utf8(name).ok()?.strip_prefix('@')
}

/// Whether a tool will soon rename this name: it begins with a dot, or GNU ln made it.
pub(super) fn is_temporary(name: &[u8]) -> bool {
    name.starts_with(b".") || std::str::from_utf8(name).is_ok_and(is_ln_temporary)
}

/// The error for a name that does not exist.
pub(super) fn not_found(name: &[u8]) -> Error {
    Error::NotFound { what: text_of(name) }
}

/// The answer for a node that is no directory, and has no name in messages.
pub(super) fn no_directory() -> Error {
    Error::NotDirectory { what: "this path".into() }
}

/// The answer for a directory that is opened or read as a file.
pub(super) fn a_directory() -> Error {
    Error::IsDirectory { what: "this path".into() }
}
