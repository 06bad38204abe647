//! imgfs mount and gc, if the blob table has lost records: finds them again in the lists at the ends of
//! segments and packs.
//!
//! A list may be out of date: content that has moved since is still listed at its old place. So all
//! found content is read. If there are several places, the first one with good content counts.

use std::collections::HashMap;

use crate::base::digest::{BlobId, Digest, GROUP, Outline};
use crate::blob::buffer::ReadBuf;
use crate::blob::container::{self, Place};
use crate::blob::pack::{Pack, Use};
use crate::blob::table::Record;
use crate::blob::writer::lead_of;
use crate::blob::{BlobStore, IdSet};
use crate::error::{Error, Result};
use crate::fault;
use crate::format::{RECORD_LEN, SEGMENT_END, SEGMENT_ENTRY_LEN, SEGMENT_FOOTER_LEN};

/// Stands for a digest that a pack's list does not have. Reading the content gives the digest.
const UNKNOWN: Digest = Digest([0; 32]);

impl BlobStore {
    /// The blobs in `wanted` that have no record.
    pub fn missing(&self, wanted: &IdSet) -> Vec<BlobId> {
        let table = self.table.read();
        wanted.iter().filter(|id| table.find(*id).is_none()).collect()
    }

    /// Finds lost records again: all that are listed, lead to good content, and have no record. No id that
    /// is below `bound`, or listed, will be given out again. Records that had been free are found too; the
    /// next sweep frees them.
    ///
    /// # Errors
    ///
    /// `Io`. Damage of a container loses what only its list had.
    pub fn rebuild(&self, bound: BlobId) -> Result<()> {
        // Reads made by this thread see that a search is under way. Other threads wait for it.
        let under_way = self.mending.lock();
        let outer = under_way.replace(true);
        let rebuilt = self.find_lost(bound);
        under_way.set(outer);
        rebuilt
    }

    fn find_lost(&self, bound: BlobId) -> Result<()> {
        let found = self.listed()?;
        let mut listed = IdSet::default();
        found.keys().for_each(|id| listed.insert(*id));
        self.table.write().grow(bound.max(listed.iter().last().map_or(0, |id| id + 1)))?;
        fault::reached("rebuild.grown");
        let lost = self.missing(&listed);
        log::warn!("the blob table has lost records: looking for {} blobs", lost.len());
        let (mut buf, mut count) = (ReadBuf::default(), 0);
        // There are two rounds, because a blob with a base can be read only after that base was found.
        for _ in 0..2 {
            for id in self.missing(&listed) {
                for record in &found[&id] {
                    if self.try_record(id, record, &mut buf)? {
                        count += 1;
                        break;
                    }
                }
            }
        }
        self.table.write().sync()?;
        log::warn!("{count} were found");
        Ok(())
    }

    /// Finds a single lost record, together with all others that are lost, unless that was tried before.
    /// Returns whether the record exists now.
    pub(super) fn mend_record(&self, id: BlobId) -> bool {
        let missing = || self.table.read().find(id).is_none();
        if self.is_damaged(id) || !missing() {
            return false;
        }
        let under_way = self.mending.lock();
        if under_way.get() {
            return false;
        }
        if missing()
            && let Err(e) = self.rebuild(0)
        {
            log::error!("{e}");
        }
        !missing()
    }

    /// Looks for other copies of damaged content that lists may still lead to. Returns how many were found.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn find_again(&self, damaged: &[BlobId]) -> Result<usize> {
        let found = self.listed()?;
        let (mut buf, mut healed) = (ReadBuf::default(), Vec::new());
        for &id in damaged {
            let Ok(old) = self.record(id) else { continue };
            for other in found
                .get(&id)
                .into_iter()
                .flatten()
                .filter(|r| (r.container, r.offset) != (old.container, old.offset))
            {
                if (other.digest == UNKNOWN || other.digest == old.digest)
                    && self.try_record(id, &Record { digest: old.digest, ..*other }, &mut buf)?
                {
                    healed.push(id);
                    break;
                }
            }
        }
        self.table.write().sync()?;
        self.note_sound(&healed);
        Ok(healed.len())
    }

    /// The contents of all containers by their lists. The most likely place of a blob comes first.
    fn listed(&self) -> Result<HashMap<BlobId, Vec<Record>>> {
        let mut places = container::list(self.backend())?;
        // Newest come first, and packs before segments, because content moves from segments into packs.
        places.sort_unstable_by_key(|(number, place)| (*place != Place::Pack, std::cmp::Reverse(*number)));
        let mut found = HashMap::<BlobId, Vec<Record>>::new();
        for (number, place) in places {
            let list = match place {
                Place::Object => continue,
                Place::Segment => self.segment_list(number),
                Place::Pack => self.pack(number).and_then(|pack| pack_list(&pack, number)),
            };
            match list {
                Ok(list) => {
                    list.into_iter().for_each(|(id, record)| found.entry(id).or_default().push(record))
                }
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => log::error!("{e}"),
            }
        }
        Ok(found)
    }

    /// Puts a record into the table if the content at its place is good. The check must come first: a guess
    /// that a crash leaves in the table would count as found.
    fn try_record(&self, id: BlobId, record: &Record, buf: &mut ReadBuf) -> Result<bool> {
        let digest = match self.digest_there(id, record, buf) {
            Ok(digest) => digest,
            Err(Error::Corrupt { .. }) => return Ok(false),
            // The container is gone.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        let good = record.digest == UNKNOWN || record.digest == digest;
        if good {
            self.table.write().rewrite(&[(id, Some(Record { digest, ..*record }))])?;
        }
        Ok(good)
    }

    /// The digest of the content at a record's place.
    fn digest_there(&self, id: BlobId, record: &Record, buf: &mut ReadBuf) -> Result<Digest> {
        let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
        while at < record.size {
            self.read_there(id, record, at, 1 << 20, buf, Use::Read)?;
            if buf.bytes().is_empty() {
                return Err(Error::Corrupt {
                    what: format!("blob {id}"),
                    why: "it is shorter than its record says".into(),
                });
            }
            hasher.update(buf.bytes());
            at += buf.bytes().len() as u64;
        }
        Ok(Digest(*hasher.finalize().as_bytes()))
    }

    /// The list of a segment.
    fn segment_list(&self, number: u32) -> Result<Vec<(BlobId, Record)>> {
        let segment = self.backend.open(&Place::Segment.key(number))?;
        let bad = || Error::Corrupt {
            what: segment.path().display().to_string(),
            why: "its list is damaged".into(),
        };
        let len = segment.size()?.len;
        let footer_at = len.checked_sub(SEGMENT_FOOTER_LEN as u64).ok_or_else(bad)?;
        let mut footer = [0; SEGMENT_FOOTER_LEN];
        segment.read_exact_at(&mut footer, footer_at)?;
        let list_at = u64::from_le_bytes(footer[24..32].try_into().map_err(|_| bad())?);
        let size =
            footer_at.checked_sub(list_at).and_then(|size| usize::try_from(size).ok()).ok_or_else(bad)?;
        let mut list = vec![0; size];
        segment.read_exact_at(&mut list, list_at)?;
        if !footer.starts_with(SEGMENT_END) || footer[32..] != Digest::of(&list).0 {
            return Err(bad());
        }
        let entry = |raw: &[u8]| {
            let id = u32::from_le_bytes(raw[..4].try_into().ok()?);
            Some((id, Record::decode(id, &raw[4..4 + RECORD_LEN])?))
        };
        list.chunks_exact(SEGMENT_ENTRY_LEN).map(|raw| entry(raw).ok_or_else(bad)).collect()
    }
}

/// The list of a pack. It has no digests.
fn pack_list(pack: &Pack, number: u32) -> Result<Vec<(BlobId, Record)>> {
    let (mut offset, mut value) = (0, 0u64);
    let mut found = Vec::new();
    for (id, size) in pack.list()? {
        let outlined = size > GROUP as u64;
        let outline_in = u32::try_from(value).unwrap_or(u32::MAX);
        let lead = if outlined { pack.outline(outline_in, 1)?.first().map_or(0, lead_of) } else { 0 };
        found.push((
            id,
            Record { digest: UNKNOWN, size, place: Place::Pack, offset, container: number, outline_in, lead },
        ));
        offset += size;
        value += if outlined { Outline::len_for(size) } else { 0 };
    }
    Ok(found)
}
