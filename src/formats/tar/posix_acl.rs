//! `SCHILY.acl.access` and `.default`: an ACL in words, as the kernel's xattr holds it.
//!
//! Source: star.4, "SCHILY.acl.*"; linux/posix_acl_xattr.h.

use crate::base::acl::{GROUP, GROUP_OBJ, MASK, NO_ID, OTHER, USER, USER_OBJ, encode};

/// `user::rw-,user:70:r--,group::r--,mask::r--,other::---` as the value of `system.posix_acl_access`.
///
/// An id stands in the second field, or (star) in a fourth. `None` for what names users by name only: which
/// id that is, only the image knows; and for words that make no ACL.
pub fn to_xattr(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    for entry in text.split([',', '\n']).map(str::trim).filter(|e| !e.is_empty() && !e.starts_with('#')) {
        let mut fields = entry.split(':');
        let (kind, name, rights) = (fields.next()?, fields.next()?, fields.next());
        // `other:r--` and `mask:rwx` may leave the empty name out.
        let (name, rights) = match (kind, rights) {
            ("o" | "other" | "m" | "mask", None) => ("", name),
            (_, rights) => (name, rights?),
        };
        let number = fields.next().unwrap_or(name);
        let id =
            if name.is_empty() { NO_ID } else { number.trim().parse().ok().filter(|id| *id != NO_ID)? };
        let tag: u16 = match (kind, name.is_empty()) {
            ("u" | "user", true) => USER_OBJ,
            ("u" | "user", false) => USER,
            ("g" | "group", true) => GROUP_OBJ,
            ("g" | "group", false) => GROUP,
            ("m" | "mask", true) => MASK,
            ("o" | "other", true) => OTHER,
            _ => return None,
        };
        // A comment may follow: `rwx #effective:r--`.
        let rights = rights.split_whitespace().next()?;
        let mut bits = 0u16;
        for letter in rights.chars() {
            bits |= match letter {
                'r' => 4,
                'w' => 2,
                'x' => 1,
                '-' => 0,
                _ => return None,
            };
        }
        entries.push((tag, id, bits));
    }
    if entries.is_empty() {
        return None;
    }
    entries.sort_unstable();
    Some(encode(&entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_what_setfacl_would_store() {
        let value = to_xattr(b"user::rw-,user:70:r--,group::r--,mask::r--,other::---").unwrap();
        assert_eq!(crate::base::digest::hex(&value[..12]), "0200000001000600ffffffff");
        assert_eq!(crate::base::digest::hex(&value[12..20]), "0200040046000000");
        assert_eq!(value.len(), 4 + 5 * 8);
        assert_eq!(
            to_xattr(b"user::rwx\ngroup::r-x\nother::r-x\nuser:lisa:r-x:502\nmask:rwx\n").unwrap().len(),
            4 + 5 * 8
        );
        for bad in [&b""[..], b"user:lisa:rwx", b"user::rwq", b"nobody::r--", b"user", b"mask:7:rwx", b"\xff"]
        {
            assert_eq!(to_xattr(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }
}
