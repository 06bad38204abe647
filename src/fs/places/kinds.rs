//! The list of the kinds. For a new kind, add a file beside this one and a line here.

/// Calls a macro with all kinds. Each has a file, a type, and the name of its directory in `.imgfs`.
macro_rules! with_kinds {
    ($call:ident) => {
        $call! {
            jobs::Jobs = "jobs",
            failed::Failed = "failed",
            trash::Trash = "trash",
            by_id::ById = "by-id",
            by_digest::ByDigest = "by-digest",
            by_uuid::ByUuid = "by-uuid",
            by::By = "by",
            defaults::Defaults = "defaults",
            aliases::Aliases = "aliases",
            config::Config = "config",
            views::Views = "views",
        }
    };
}
pub(super) use with_kinds;

macro_rules! kinds {
    ($($module:ident :: $kind:ident = $name:literal),* $(,)?) => {
        /// A kind of directory.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($kind),* }

        /// All kinds, with the names of their directories.
        pub const ALL: &[(&str, Kind)] = &[$(($name, Kind::$kind)),*];
    };
}

with_kinds!(kinds);

impl Kind {
    /// The name of its directory in `.imgfs`.
    pub fn name(self) -> &'static str {
        ALL[self as usize].0
    }

    pub fn number(self) -> u64 {
        self as u64
    }

    pub fn from_number(number: u64) -> Option<Kind> {
        ALL.get(usize::try_from(number).ok()?).map(|(_, kind)| *kind)
    }
}
