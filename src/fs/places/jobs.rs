//! cat .imgfs/jobs/7.json: a job that runs or has ended, and its result.

use crate::error::{Error, Result};
use crate::fs::names::text_of;
use crate::fs::node::NodeId;
use crate::fs::places::{Kind, Place, private_text};
use crate::fs::{Attr, Caller, DirEntry, ImageFs, stale};

/// `.imgfs/jobs`: a file for each job. Its number is the job's, counted from 1.
pub struct Jobs;

/// The user who began the job, and the text of the file.
fn told(fs: &ImageFs, number: u64) -> Result<(u32, String)> {
    fs.store.journal.job_text(number).ok_or_else(stale)
}

impl Place for Jobs {
    fn lookup(&self, fs: &ImageFs, _caller: Caller, _directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let missing = || Error::NotFound { what: text_of(name) };
        let name = std::str::from_utf8(name).map_err(|_| missing())?;
        let id = name
            .strip_suffix(".json")
            .and_then(|id| id.parse().ok())
            .filter(|id| *id > 0)
            .ok_or_else(missing)?;
        fs.store.journal.job_text(id).map(|_| NodeId::In(Kind::Jobs, id)).ok_or_else(missing)
    }

    fn list(&self, fs: &ImageFs, _caller: Caller, _directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        all.extend(
            fs.store
                .journal
                .job_ids()
                .into_iter()
                .map(|id| DirEntry::new(format!("{id}.json"), NodeId::In(Kind::Jobs, id), libc::S_IFREG)),
        );
        Ok(())
    }

    fn changes(&self) -> bool {
        false
    }

    /// Only the user who began the job may read its file.
    fn attr(&self, fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        let number = node.number();
        if number == 0 {
            return Ok(Attr { mode: libc::S_IFDIR | 0o755, ..own });
        }
        let (uid, text) = told(fs, number)?;
        Ok(private_text(uid, &text, own))
    }

    fn text(&self, fs: &ImageFs, node: NodeId) -> Result<String> {
        let number = node.number();
        if number == 0 {
            return Err(Error::IsDirectory { what: ".imgfs/jobs".into() });
        }
        Ok(told(fs, number)?.1)
    }
}
