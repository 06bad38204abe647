//! gc's lower half: frees blobs that no tree names, and returns their space to the disk.
//!
//! Deletion runs in reverse (invariant 1). The caller has removed the rows and trees. Records go next,
//! durably, then the bytes. A crash in between leaves files or ranges that no record names, and the
//! next sweep finds them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::digest::{BlobId, CV_LEN, Outline};
use crate::blob::BlobStore;
use crate::blob::backend::{Container, Shelf};
use crate::blob::container::{self, Place};
use crate::blob::pack::Pack;
use crate::blob::table::Record;
use crate::error::{Error, Result};
use crate::fault;
use crate::format::{SEGMENT_ENTRY_LEN, SEGMENT_FOOTER_LEN};

/// A set of blob ids, with one bit each.
#[derive(Clone, Default)]
pub struct IdSet {
    words: Vec<u64>,
}

impl IdSet {
    pub fn insert(&mut self, id: BlobId) {
        let word = id as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (id % 64);
    }

    /// Removes an id. Returns whether it was there.
    pub fn remove(&mut self, id: BlobId) -> bool {
        let was = self.contains(id);
        if was {
            self.words[id as usize / 64] &= !(1 << (id % 64));
        }
        was
    }

    /// The ids in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = BlobId> + '_ {
        (0..).zip(&self.words).flat_map(|(n, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| n * 64 + bit)
        })
    }

    pub fn contains(&self, id: BlobId) -> bool {
        self.words.get(id as usize / 64).is_some_and(|w| w >> (id % 64) & 1 == 1)
    }
}

/// A mark under way. Blobs that were given out or pinned since it began are not swept.
pub struct MarkToken<'s> {
    store: &'s BlobStore,
    bound: BlobId,
}

impl Drop for MarkToken<'_> {
    fn drop(&mut self) {
        self.store.pins.end_mark();
    }
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub blobs: u64,
    /// Content freed, in bytes.
    pub bytes: u64,
}

impl BlobStore {
    /// Begins a mark. It must be called before looking for trees, and only one mark may run at a time.
    pub fn begin_mark(&self) -> MarkToken<'_> {
        self.pins.begin_mark();
        MarkToken { store: self, bound: self.id_bound() }
    }

    /// Frees blobs that are neither in `live` nor needed by an upload, and returns their space to the disk.
    ///
    /// # Errors
    ///
    /// `Io`. What was freed stays free, and the next sweep continues.
    pub fn sweep(&self, token: MarkToken<'_>, live: &IdSet) -> Result<Swept> {
        let mut swept = Swept::default();
        let packs = self.all_packs()?;
        {
            let mut table = self.table.write();
            let kept = if fault::leaves_out("gc.pins") { IdSet::default() } else { self.pins.kept() };
            let lives = |id: BlobId| id >= token.bound || live.contains(id) || kept.contains(id);
            let mut dead = Vec::new();
            let living = table.records().filter(|(id, record)| {
                let lives = lives(*id);
                if !lives {
                    dead.push((*id, record.size));
                }
                lives
            });
            let bases = bases_of(&packs, living);
            let mut freed = Vec::new();
            for (id, size) in dead.into_iter().filter(|(id, _)| !bases.contains(*id)) {
                swept.blobs += 1;
                swept.bytes += size;
                freed.push((id, None));
            }
            table.rewrite(&freed)?;
            table.sync()?;
            fault::reached("sweep.freed");
            if !freed.is_empty() {
                table.punch_free()?;
                self.note_sound(&freed.iter().map(|(id, _)| *id).collect::<Vec<_>>());
            }
        }
        drop(token);
        self.reclaim(false)?;
        Ok(swept)
    }

    /// Writes every segment that holds freed content again, however little that is.
    ///
    /// # Errors
    ///
    /// `Io`; `Stopped` after a sync has failed. Damaged containers are skipped.
    pub fn squeeze(&self) -> Result<()> {
        self.reclaim(true)
    }

    /// Returns space in containers that no record names to the disk. Idempotent.
    fn reclaim(&self, all: bool) -> Result<()> {
        // While this is held, no new container can appear that is only partly named.
        let mut next_container = self.seal.lock();
        let mut extents: HashMap<u32, Vec<(u64, u64)>> = HashMap::new();
        for (_, record) in self.table.read().records() {
            let outline = Outline::len_for(record.size) * CV_LEN as u64;
            match record.place {
                Place::Segment => {
                    let from = record.offset.saturating_sub(outline);
                    extents.entry(record.container).or_default().push((from, record.offset + record.size));
                }
                Place::Pack => extents
                    .entry(record.container)
                    .or_default()
                    .push((record.offset, record.offset + record.size)),
                Place::Object => {
                    extents.entry(record.container).or_default();
                    extents
                        .entry(record.outline_in)
                        .or_default()
                        .push((record.offset, record.offset + outline));
                }
            }
        }
        let mut removed = false;
        for (number, place) in container::list(self.backend())? {
            match extents.get_mut(&number) {
                None => {
                    self.containers.lock().remove(&number);
                    self.packs.lock().remove(&number);
                    self.backend.delete(&place.key(number))?;
                    fault::reached("reclaim.removed");
                    removed = true;
                }
                Some(live) => match self.shrink(number, place, live, all, &mut next_container) {
                    Ok(shrunk) => removed |= shrunk,
                    // The container stays as it is, with whatever can still be read from it.
                    Err(e @ Error::Corrupt { .. }) => log::error!("{e}"),
                    Err(e) => return Err(e),
                },
            }
        }
        if removed {
            Shelf::CONTENT.into_iter().try_for_each(|shelf| self.backend.sync(shelf))
        } else {
            Ok(())
        }
    }

    /// Frees what is unused in a container that also holds something in use. Returns whether a new
    /// container was written.
    fn shrink(
        &self,
        number: u32,
        place: Place,
        live: &mut [(u64, u64)],
        all: bool,
        next_container: &mut u32,
    ) -> Result<bool> {
        match place {
            Place::Object => {}
            Place::Pack => {
                self.punch_pack(number, live)?;
                fault::reached("reclaim.punched");
            }
            Place::Segment => {
                live.sort_unstable();
                if self.punch_segment(number, live, all)? {
                    self.compact(number, next_container)?;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Every pack, open, except for those with damaged tables. Nothing can be read from those, so they need
    /// no bases.
    pub(super) fn all_packs(&self) -> Result<HashMap<u32, Arc<Pack>>> {
        let mut open = HashMap::new();
        let all = container::list(self.backend())?.into_iter();
        for (number, _) in all.filter(|(_, place)| *place == Place::Pack) {
            match self.pack(number) {
                Ok(pack) => drop(open.insert(number, pack)),
                Err(e @ Error::Corrupt { .. }) => log::error!("{e}"),
                Err(e) => return Err(e),
            }
        }
        Ok(open)
    }

    /// Returns frames without content in use to the disk. `live` has the ranges of the stream that records
    /// name.
    fn punch_pack(&self, number: u32, live: &[(u64, u64)]) -> Result<()> {
        let pack = self.pack(number)?;
        let mut used = vec![false; pack.frames.len()];
        for &(from, to) in live {
            used[pack.frames_of(from, to)].fill(true);
        }
        // Adjacent frames are freed together. Otherwise a page shared by two of them would stay.
        let mut at = 0;
        let mut live: Vec<(u64, u64)> = pack
            .frames
            .iter()
            .zip(used)
            .filter(|(_, used)| *used)
            .map(|(f, _)| (f.at, f.at + u64::from(f.len)))
            .collect();
        live.push(pack.frames.last().map_or((0, 0), |last| (last.at + u64::from(last.len), u64::MAX)));
        let mut gaps = Vec::new();
        for (from, to) in live {
            gaps.extend(pages_between(at, from));
            at = to;
        }
        self.backend.trim(&Place::Pack.key(number), &gaps)
    }

    /// Punches the gaps between what is in use in a segment. Returns whether the segment is worth writing
    /// again.
    fn punch_segment(&self, number: u32, live: &[(u64, u64)], all: bool) -> Result<bool> {
        let segment = self.container(number, Place::Segment)?;
        let size = segment.size()?;
        let live_bytes: u64 = live.iter().map(|(from, to)| to - from).sum();
        let wasted =
            |stored: u64| stored.saturating_sub(live_bytes + (live.len() * SEGMENT_ENTRY_LEN) as u64);
        // The list at the end may have an entry for each blob that was ever in this segment.
        let slack = 64 * 1024 + live_bytes / 8;
        if all {
            return Ok(wasted(size.stored) > 8192);
        }
        if wasted(size.stored) <= slack {
            return Ok(false);
        }
        let list_at = list_offset(&segment, size.len);
        let (mut at, mut gaps) = (0, Vec::new());
        for &(from, to) in live.iter().chain([(list_at, size.len)].iter()) {
            gaps.extend(pages_between(at, from));
            at = at.max(to);
        }
        self.backend.trim(&Place::Segment.key(number), &gaps)?;
        Ok(wasted(segment.size()?.stored) > live_bytes.max(slack))
    }

    /// Bytes the content takes on the disk.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn stored_bytes(&self) -> Result<u64> {
        let mut total = 0;
        for (number, place) in container::list(self.backend())? {
            match self.backend.size(&place.key(number)) {
                Ok(size) => total += size.stored,
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(total)
    }

    /// Damage that shows in the table itself: records that are neither free nor whole. For fsck.
    pub fn damaged_records(&self) -> Vec<BlobId> {
        self.table.read().damaged().collect()
    }

    /// All blobs and their records. For fsck and statistics.
    pub fn records(&self) -> Vec<(BlobId, Record)> {
        self.table.read().records().collect()
    }

    /// Frames whose bases do not exist, or need bases themselves (invariant 10). For fsck.
    ///
    /// # Errors
    ///
    /// `Io` if the containers cannot be listed.
    pub fn broken_bases(&self) -> Result<Vec<String>> {
        // A pack that cannot be opened counts as damage of its blobs.
        let packs = container::list(self.backend())?.into_iter().filter(|(_, place)| *place == Place::Pack);
        let packs = packs.filter_map(|(number, _)| Some((number, self.pack(number).ok()?))).collect();
        let mut broken = Vec::new();
        for id in bases_of(&packs, self.records().into_iter()).iter() {
            match self.has_bases(id) {
                Ok(false) => {}
                Ok(true) => broken.push(format!("base {id} of a pack has bases itself")),
                Err(e) => broken.push(format!("base {id} of a pack: {e}")),
            }
        }
        Ok(broken)
    }

    /// Container files that no record names (invariant 6). For fsck.
    ///
    /// # Errors
    ///
    /// `Io` if the containers cannot be listed.
    pub fn stray_containers(&self) -> Result<Vec<String>> {
        let _no_new_ones = self.seal.lock();
        let of = |r: &Record| [r.container, if r.place == Place::Object { r.outline_in } else { 0 }];
        let named: std::collections::HashSet<u32> = self.records().iter().flat_map(|(_, r)| of(r)).collect();
        let all = container::list(self.backend())?;
        let strays = all.into_iter().filter(|(n, _)| !named.contains(n));
        Ok(strays.map(|(number, place)| place.key(number).path().display().to_string()).collect())
    }
}

/// The blobs that serve as bases of frames with content in use.
fn bases_of(packs: &HashMap<u32, Arc<Pack>>, live: impl Iterator<Item = (BlobId, Record)>) -> IdSet {
    let mut used: HashMap<u32, Vec<bool>> =
        packs.iter().map(|(n, pack)| (*n, vec![false; pack.frames.len()])).collect();
    for (_, record) in live.filter(|(_, record)| record.is_packed()) {
        if let (Some(pack), Some(used)) = (packs.get(&record.container), used.get_mut(&record.container)) {
            used[pack.frames_of(record.offset, record.offset + record.size)].fill(true);
        }
    }
    let mut bases = IdSet::default();
    for (number, pack) in packs {
        let used = used.get(number).into_iter().flatten();
        for (frame, _) in pack.frames.iter().zip(used).filter(|(_, used)| **used) {
            pack.bases_of(frame).iter().for_each(|base| bases.insert(base.id));
        }
    }
    bases
}

/// Where a segment's list begins, by its footer. If the footer cannot be read, where the footer begins.
fn list_offset(segment: &Container, len: u64) -> u64 {
    let footer_at = len.saturating_sub(SEGMENT_FOOTER_LEN as u64);
    let mut footer = [0u8; SEGMENT_FOOTER_LEN];
    match segment.read_exact_at(&mut footer, footer_at) {
        Ok(()) => u64::from_le_bytes(footer[24..32].try_into().expect("eight bytes")).min(footer_at),
        Err(_) => footer_at,
    }
}

/// The whole pages in `[from, to)`, as offset and bytes.
fn pages_between(from: u64, to: u64) -> Option<(u64, u64)> {
    let (from, to) = (from.div_ceil(4096) * 4096, to / 4096 * 4096);
    (from < to).then(|| (from, to - from))
}
