//! setfacl -m u:anna:rwx MNT/web: the rights that an ACL adds to a mode.
//!
//! As in acl(5), the mode's group bits are the mask. It limits the rights of named users, of named
//! groups, and of the group.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The names of the xattrs that the kernel and setfacl use.
pub const ACCESS: &str = "system.posix_acl_access";
pub const DEFAULT: &str = "system.posix_acl_default";

/// Source: linux/posix_acl_xattr.h: version, then 8 bytes an entry: tag u16, permissions u16, id u32.
const VERSION: u32 = 2;
/// The id of entries that have no name.
pub const NO_ID: u32 = u32::MAX;
pub const USER_OBJ: u16 = 0x01;
pub const USER: u16 = 0x02;
pub const GROUP_OBJ: u16 = 0x04;
pub const GROUP: u16 = 0x08;
pub const MASK: u16 = 0x10;
pub const OTHER: u16 = 0x20;

/// The rights beyond the mode. Rights are three bits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acl {
    /// By uid and by gid.
    #[serde(default)]
    pub users: BTreeMap<u32, u32>,
    #[serde(default)]
    pub groups: BTreeMap<u32, u32>,
    /// The rights of the file's own group, because the mode's group bits are the mask.
    pub group: u32,
}

impl Acl {
    /// Reads the value of the xattr. Returns the ACL, if it says more than a mode, and the nine mode bits.
    ///
    /// # Errors
    ///
    /// `Invalid` for anything that is no ACL.
    pub fn parse(value: &[u8]) -> Result<(Option<Acl>, u32)> {
        let bad = |why: &str| Error::Invalid { what: "the ACL".into(), why: why.into() };
        let (head, entries) = value.split_at_checked(4).ok_or_else(|| bad("it is cut off"))?;
        if head != VERSION.to_le_bytes() || entries.len() % 8 != 0 {
            return Err(bad("it is of an unknown form"));
        }
        let (mut acl, mut owner, mut group, mut mask, mut other) = (Acl::default(), None, None, None, None);
        for entry in entries.chunks_exact(8) {
            let u16_at = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
            let (tag, rights) = (u16_at(0), u32::from(u16_at(2)));
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            if rights > 7 {
                return Err(bad("a permission is unknown"));
            }
            let before = match tag {
                USER_OBJ => owner.replace(rights),
                USER => acl.users.insert(id, rights),
                GROUP_OBJ => group.replace(rights),
                GROUP => acl.groups.insert(id, rights),
                MASK => mask.replace(rights),
                OTHER => other.replace(rights),
                _ => return Err(bad("an entry is of an unknown kind")),
            };
            if before.is_some() {
                return Err(bad("an entry is there twice"));
            }
        }
        let (Some(owner), Some(group), Some(other)) = (owner, group, other) else {
            return Err(bad("an entry is missing"));
        };
        let named = !acl.users.is_empty() || !acl.groups.is_empty();
        let bits = |middle: u32| owner << 6 | middle << 3 | other;
        match mask {
            None if named => Err(bad("the mask is missing")),
            None => Ok((None, bits(group))),
            Some(mask) => Ok((Some(Acl { group, ..acl }), bits(mask))),
        }
    }

    /// The value of the xattr, for a file with this mode. `most` limits all rights; for example, nobody may
    /// write some files.
    pub fn value(&self, mode: u32, most: u32) -> Vec<u8> {
        let entry = |tag: u16, id: u32, rights: u32| (tag, id, (rights & most & 7) as u16);
        let mut entries = vec![entry(USER_OBJ, NO_ID, mode >> 6)];
        entries.extend(self.users.iter().map(|(uid, rights)| entry(USER, *uid, *rights)));
        entries.push(entry(GROUP_OBJ, NO_ID, self.group));
        entries.extend(self.groups.iter().map(|(gid, rights)| entry(GROUP, *gid, *rights)));
        entries.extend([entry(MASK, NO_ID, mode >> 3), entry(OTHER, NO_ID, mode)]);
        encode(&entries)
    }

    /// Changes all rights that the mask limits.
    pub fn change(&mut self, work: impl Fn(&mut u32)) {
        self.users.values_mut().chain(self.groups.values_mut()).chain([&mut self.group]).for_each(work);
    }

    /// Whether a user who is not the owner has the wanted rights: by name, by groups, or as others. `is_in`
    /// says whether the user is in a group.
    pub fn rights(&self, mode: u32, uid: u32, gid: u32, is_in: impl Fn(u32) -> bool, want: u32) -> bool {
        let allows = |rights: u32| rights & (mode >> 3) & want == want;
        if let Some(rights) = self.users.get(&uid) {
            return allows(*rights);
        }
        let own = is_in(gid).then_some(self.group);
        let mut of_groups = own
            .into_iter()
            .chain(self.groups.iter().filter(|(gid, _)| is_in(**gid)).map(|(_, r)| *r))
            .peekable();
        if of_groups.peek().is_some() {
            return of_groups.any(allows);
        }
        mode & want == want
    }
}

/// The value of the xattr: entries of tag, id and rights, in their order.
pub fn encode(entries: &[(u16, u32, u16)]) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, rights) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&rights.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

/// A mode with the nine bits of an ACL. Without `bits`, the group gets its own rights back.
pub fn with_bits(mode: u32, before: Option<&Acl>, bits: Option<u32>) -> u32 {
    let own = before.map_or(mode, |acl| mode & !0o070 | acl.group << 3);
    bits.map_or(own, |bits| mode & !0o777 | bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acl_reads_back_and_a_mode_is_none() {
        let acl = Acl { users: [(7, 6), (8, 0)].into(), groups: [(9, 5)].into(), group: 4 };
        assert_eq!(Acl::parse(&acl.value(0o751, 7)).unwrap(), (Some(acl.clone()), 0o751));
        let words = crate::formats::tar::acl_value(b"user::rwx,group::r-x,other::---").unwrap();
        assert_eq!(Acl::parse(&words).unwrap(), (None, 0o750));
        assert_eq!(Acl::parse(&acl.value(0o777, 4)).unwrap().0.unwrap().users[&7], 4);
        for bad in ["user::rwx,group::r-x", "user::rwx,user:7:r--,group::r-x,other::---"] {
            assert!(Acl::parse(&crate::formats::tar::acl_value(bad.as_bytes()).unwrap()).is_err(), "{bad}");
        }
        assert!(Acl::parse(b"").is_err() && Acl::parse(&acl.value(0o751, 7)[..9]).is_err());
    }

    #[test]
    fn who_has_what_is_as_acl_5_says() {
        let acl = Acl { users: [(7, 6)].into(), groups: [(9, 5), (10, 2)].into(), group: 4 };
        let may =
            |uid: u32, groups: &[u32], want: u32| acl.rights(0o751, uid, 3, |g| groups.contains(&g), want);
        // The mask is r-x, so a named user does not have w.
        assert!(may(7, &[], 4) && !may(7, &[], 2) && !may(7, &[9], 1));
        assert!(may(1, &[3], 4) && !may(1, &[3], 1) && may(1, &[3, 9], 1) && !may(1, &[10], 2));
        assert!(may(1, &[], 1) && !may(1, &[], 4));
    }
}
