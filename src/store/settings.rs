//! cat .imgfs/config/trash, echo 7d > it, imgfs mount -o trash=7d: how a store behaves.
//!
//! A chosen setting stays with the store. A mount's `-o` overrides it until it is chosen again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::clock::{duration, duration_text};
use crate::error::{Error, Result};
use crate::formats::metadata::KeepUpload;
use crate::formats::tar::Limits;

/// How a store behaves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How many seconds deleted things stay in the trash.
    pub trash_seconds: u64,
    /// Seconds between two scrubs of everything that is stored. With 0 there are none.
    pub scrub_seconds: u64,
    pub limits: Limits,
    /// Applies to images that do not set it themselves.
    pub keep_upload: KeepUpload,
    /// The group whose members may do everything, and the group whose members may make images.
    pub admin_group: Option<u32>,
    pub import_group: Option<u32>,
    /// How many bytes, and how many images, each user may have stored. 0 means no bound.
    pub quota: u64,
    pub quota_images: u64,
    /// Which of `ALL` this mount's options have set, one bit each.
    given: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            trash_seconds: 24 * 3600,
            scrub_seconds: 7 * 24 * 3600,
            limits: Limits::default(),
            keep_upload: KeepUpload::default(),
            admin_group: None,
            import_group: None,
            quota: 0,
            quota_images: 0,
            given: 0,
        }
    }
}

/// How the trees of versions are shown: each as a mount of its own, or as directories of the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TreesAs {
    /// Mounts if they are possible.
    Auto,
    Mounted,
    Inline,
}

/// The field of a setting, and the values that it takes.
enum Field<'s> {
    Seconds(&'s mut u64),
    /// More than 0, up to a bound.
    Amount(&'s mut u64, u64),
    Count(&'s mut usize, u64),
    /// 0 means none.
    Quota(&'s mut u64),
    Keep(&'s mut KeepUpload),
    Group(&'s mut Option<u32>),
}

type Place = fn(&mut Settings) -> Field<'_>;

/// Every setting, by the name of its file and its option.
const ALL: &[(&str, Place)] = &[
    ("trash", |s| Field::Seconds(&mut s.trash_seconds)),
    ("scrub", |s| Field::Seconds(&mut s.scrub_seconds)),
    ("keep_upload", |s| Field::Keep(&mut s.keep_upload)),
    ("max_size", |s| Field::Amount(&mut s.limits.tar_size, u64::MAX)),
    ("max_entries", |s| Field::Amount(&mut s.limits.entries, 200_000_000)),
    ("max_depth", |s| Field::Count(&mut s.limits.depth, 1 << 20)),
    ("max_header", |s| Field::Amount(&mut s.limits.header, 1 << 30)),
    ("max_xattrs", |s| Field::Count(&mut s.limits.xattrs, 1 << 24)),
    ("max_pieces", |s| Field::Count(&mut s.limits.pieces, 1 << 24)),
    ("max_window", |s| Field::Amount(&mut s.limits.window, u64::MAX)),
    ("max_ratio", |s| Field::Amount(&mut s.limits.ratio, u64::MAX)),
    ("admin_group", |s| Field::Group(&mut s.admin_group)),
    ("import_group", |s| Field::Group(&mut s.import_group)),
    ("quota", |s| Field::Quota(&mut s.quota)),
    ("quota_images", |s| Field::Quota(&mut s.quota_images)),
];

/// Settings of one user, `quota.alice`, `quota_images.1000`, and of one view, `view.dc1.quota`.
const OF_USERS: &[&str] = &["quota", "quota_images"];

/// The prefix of a view's settings.
const VIEW: &str = "view.";

/// The prefix of the catalog's keys.
pub const CONFIG: &str = "config.";

/// The catalog's key of a setting.
pub fn key(name: &str) -> String {
    format!("{CONFIG}{name}")
}

impl Settings {
    /// Whether this is a setting of the store.
    pub fn is_known(name: &str) -> bool {
        ALL.iter().any(|(known, _)| *known == name)
    }

    /// The names of all settings, in order.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ALL.iter().map(|(name, _)| *name)
    }

    /// Sets one setting from its text.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Invalid` for a text that says nothing of its type.
    pub fn set(&mut self, name: &str, text: &str) -> Result<()> {
        let (_, place) = ALL.iter().find(|(known, _)| *known == name).ok_or_else(|| unknown(name))?;
        parse(place(self), text.trim())
            .map_err(|why| Error::Invalid { what: format!("{name} {:?}", text.trim()), why: why.into() })
    }

    /// Sets one setting as an option of this mount.
    ///
    /// # Errors
    ///
    /// Those of `set`.
    pub fn give(&mut self, name: &str, text: &str) -> Result<()> {
        self.set(name, text)?;
        self.given |= ALL.iter().position(|(known, _)| *known == name).map_or(0, |at| 1 << at);
        Ok(())
    }

    /// The settings that options of this mount have set.
    pub fn given(&self) -> impl Iterator<Item = &'static str> {
        let given = self.given;
        Self::names().enumerate().filter(move |(at, _)| given & 1 << at != 0).map(|(_, name)| name)
    }

    /// The text of one setting.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn text(mut self, name: &str) -> Result<String> {
        let (_, place) = ALL.iter().find(|(known, _)| *known == name).ok_or_else(|| unknown(name))?;
        Ok(match place(&mut self) {
            Field::Seconds(seconds) => duration_text(*seconds),
            Field::Amount(n, _) | Field::Quota(n) => bytes_text(*n),
            Field::Count(n, _) => bytes_text(*n as u64),
            Field::Keep(keep) => keep.name().into(),
            Field::Group(gid) => gid.map(group_text).unwrap_or_default(),
        })
    }

    /// The settings in effect. `self` has the options of the mount and the defaults. `chosen` has the rows
    /// of the catalog, which replace defaults.
    pub fn with_chosen(mut self, chosen: &BTreeMap<String, String>) -> Settings {
        let given = self.given;
        for (_, (name, _)) in ALL.iter().enumerate().filter(|(at, _)| given & 1 << at == 0) {
            let default = Settings::default().text(name).unwrap_or_default();
            let text = chosen.get(&key(name)).unwrap_or(&default);
            if let Err(e) = self.set(name, text) {
                log::error!("the setting {e}");
            }
        }
        self
    }

    /// Drops the mount's option, because the setting was chosen or reset.
    pub fn forget_given(&mut self, name: &str) {
        self.given &= !ALL.iter().position(|(known, _)| *known == name).map_or(0, |at| 1 << at);
    }
}

/// Checks the text of a setting. Returns the name and the text as they are stored.
///
/// # Errors
///
/// `NotFound`, `Invalid`.
pub fn check(name: &str, text: &str) -> Result<(String, String)> {
    let name = canonical(name).ok_or_else(|| unknown(name))?;
    let setting = kind_of(&name);
    let mut settings = Settings::default();
    settings.set(setting, text)?;
    let text = settings.text(setting)?;
    Ok((name, text))
}

/// The name under which a setting is stored. Users have their numbers in it. `None` if no setting can
/// have this name.
pub fn canonical(name: &str) -> Option<String> {
    if Settings::is_known(name) {
        return Some(name.to_owned());
    }
    if let Some((view, setting)) = name.strip_prefix(VIEW).and_then(|rest| rest.rsplit_once('.')) {
        return (OF_USERS.contains(&setting) && !view.is_empty()).then(|| name.to_owned());
    }
    let (setting, user) = name.split_once('.').filter(|(setting, _)| OF_USERS.contains(setting))?;
    Some(format!("{setting}.{}", user_id(user)?))
}

/// The setting of the store that corresponds to a setting of a user or of a view.
pub fn kind_of(name: &str) -> &str {
    match name.strip_prefix(VIEW).and_then(|rest| rest.rsplit_once('.')) {
        Some((_, setting)) => setting,
        None => name.split('.').next().unwrap_or_default(),
    }
}

/// The view to which a setting belongs.
pub fn view_of(name: &str) -> Option<&str> {
    name.strip_prefix(VIEW)?.rsplit_once('.').map(|(view, _)| view)
}

/// Whether a key of the catalog belongs to a setting of this view.
pub fn is_of_view(key: &str, view: &str) -> bool {
    key.strip_prefix(CONFIG).and_then(view_of) == Some(view)
}

/// The name under which a setting is shown. Users have their names in it.
pub fn shown(name: &str) -> String {
    let user = name.split_once('.').and_then(|(setting, uid)| Some((setting, uid.parse::<u32>().ok()?)));
    let found =
        user.and_then(|(setting, uid)| Some((setting, nix::unistd::User::from_uid(uid.into()).ok()??.name)));
    found.map_or_else(|| name.to_owned(), |(setting, user)| format!("{setting}.{user}"))
}

/// A user's own bound, or the bound for all users: bytes, images. 0 means none.
pub fn quota_of(settings: &Settings, chosen: &BTreeMap<String, String>, uid: u32) -> (u64, u64) {
    own_quota(*settings, chosen, |name| format!("{name}.{uid}"))
}

/// The bound of a view, which has none by default.
pub fn quota_of_view(chosen: &BTreeMap<String, String>, view: &str) -> (u64, u64) {
    own_quota(Settings::default(), chosen, |name| of_view(view, name))
}

fn own_quota(
    mut own: Settings,
    chosen: &BTreeMap<String, String>,
    called: impl Fn(&str) -> String,
) -> (u64, u64) {
    for name in OF_USERS {
        if let Some(text) = chosen.get(&key(&called(name))) {
            let _ = own.set(name, text);
        }
    }
    (own.quota, own.quota_images)
}

/// The name of a view's setting: `view.dc1.quota`.
fn of_view(view: &str, name: &str) -> String {
    format!("{VIEW}{view}.{name}")
}

fn unknown(name: &str) -> Error {
    Error::NotFound { what: format!("setting {name}") }
}

fn parse(field: Field<'_>, text: &str) -> std::result::Result<(), &'static str> {
    let amount = |most: u64| match bytes(text) {
        Some(0) | None => Err("it takes a number above 0, with K, M, G or T"),
        Some(n) => Ok(n.min(most)),
    };
    match field {
        Field::Seconds(seconds) => *seconds = duration(text).ok_or("it takes a time: 30m, 24h, 7d, or 0")?,
        Field::Amount(n, most) => *n = amount(most)?,
        Field::Count(n, most) => *n = usize::try_from(amount(most)?).unwrap_or(usize::MAX),
        Field::Quota(n) => *n = bytes(text).ok_or("it takes a number, with K, M, G or T; 0 is no bound")?,
        Field::Keep(keep) => *keep = KeepUpload::parse(text).ok_or("it takes never, always or exact")?,
        Field::Group(gid) if text.is_empty() => *gid = None,
        Field::Group(gid) => *gid = Some(group_id(text).ok_or("it takes the name or the number of a group")?),
    }
    Ok(())
}

fn group_id(text: &str) -> Option<u32> {
    let named = || Some(nix::unistd::Group::from_name(text).ok()??.gid.as_raw());
    text.parse().ok().or_else(named).filter(|gid| *gid != u32::MAX)
}

fn group_text(gid: u32) -> String {
    let found = nix::unistd::Group::from_gid(gid.into()).ok().flatten();
    found.map_or_else(|| gid.to_string(), |group| group.name)
}

fn user_id(text: &str) -> Option<u32> {
    let named = || Some(nix::unistd::User::from_name(text).ok()??.uid.as_raw());
    text.parse().ok().or_else(named).filter(|uid| *uid != u32::MAX)
}

/// `4096`, `64K`, `1G`: powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (&text[..at], 10),
        (at, 'M' | 'm') => (&text[..at], 20),
        (at, 'G' | 'g') => (&text[..at], 30),
        (at, 'T' | 't') => (&text[..at], 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn bytes_text(n: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let whole = units.into_iter().find(|(shift, _)| n > 0 && n.trailing_zeros() >= *shift);
    whole.map_or_else(|| n.to_string(), |(shift, unit)| format!("{}{unit}", n >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_reads_back_as_it_was_written() {
        for (name, text) in [
            ("trash", "7d"),
            ("trash", "24h"),
            ("trash", "0"),
            ("trash", "90s"),
            ("keep_upload", "exact"),
            ("max_size", "5G"),
            ("max_depth", "100"),
            ("quota", "0"),
            ("quota_images", "3"),
            ("admin_group", ""),
        ] {
            let mut settings = Settings::default();
            settings.set(name, &format!("{text}\n")).unwrap();
            assert_eq!(settings.text(name).unwrap(), text, "{name}");
        }
        for name in Settings::names() {
            let text = Settings::default().text(name).unwrap();
            Settings::default().set(name, &text).unwrap();
        }
        assert_eq!(Settings::default().text("trash").unwrap(), "24h");
        for (name, text) in [
            ("trash", "soon"),
            ("trash", ""),
            ("max_size", "0"),
            ("max_size", "1X"),
            ("quota", "-1"),
            ("keep_upload", "no"),
            ("admin_group", "4294967295"),
        ] {
            assert!(Settings::default().set(name, text).is_err(), "{name} {text}");
        }
    }

    #[test]
    fn a_mounts_word_goes_before_what_was_chosen() {
        let chosen = BTreeMap::from([
            ("config.trash".to_owned(), "7d".to_owned()),
            ("config.scrub".to_owned(), "1h".to_owned()),
        ]);
        let mut settings = Settings::default();
        settings.give("trash", "1h").unwrap();
        let both = settings.with_chosen(&chosen);
        assert_eq!((both.trash_seconds, both.scrub_seconds), (3600, 3600));
        let mut later = both;
        later.forget_given("trash");
        assert_eq!(later.with_chosen(&chosen).trash_seconds, 7 * 86400);
        assert_eq!(later.with_chosen(&BTreeMap::new()).trash_seconds, 86400);
    }

    #[test]
    fn users_have_bounds_of_their_own() {
        assert_eq!(check("quota.root", "1024K").unwrap(), ("quota.0".into(), "1M".into()));
        assert_eq!(check("view.dc1.quota", "1024K").unwrap(), ("view.dc1.quota".into(), "1M".into()));
        assert!(check("view.dc1.trash", "1").is_err() && check("view.dc1", "1").is_err());
        assert!(check("quota.nobody-is-called-so", "1").is_err() && check("trash.0", "1").is_err());
        let chosen = BTreeMap::from([("config.quota.7".to_owned(), "0".to_owned())]);
        let settings = Settings { quota: 5, quota_images: 2, ..Settings::default() };
        assert_eq!((quota_of(&settings, &chosen, 7), quota_of(&settings, &chosen, 8)), ((0, 2), (5, 2)));
    }
}
