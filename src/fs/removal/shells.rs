//! cp -a TREE MNT/, tar xf x.tar -C MNT: images that mkdir has made, and that took nothing else.
//!
//! Such tools make a directory, which is a new image, and then copy files into it that no image takes.
//! imgfs refuses each of those. Once the tool has ended, imgfs deletes an image that has no version if
//! the tool was refused something in it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::base::process::{born, has_ended, of_thread, parent};
use crate::fs::node::{ImagePart, NodeId};
use crate::fs::upload::Destination;
use crate::fs::{Caller, ImageFs};
use crate::images::versions;

/// How long a process in another namespace counts as running after its last refusal. imgfs cannot look
/// at such a process.
const UNSEEN: Duration = Duration::from_secs(10);

struct Shell {
    image: u32,
    /// The process that made it, and when that process started. 0 if the process cannot be seen.
    maker: u32,
    born: Option<u64>,
    /// When the maker was last refused something in the image.
    refused: Option<Instant>,
}

impl Shell {
    /// Whether its maker has ended.
    fn is_left(&self) -> bool {
        if self.maker == 0 {
            return self.refused.is_none_or(|at| at.elapsed() > UNSEEN);
        }
        has_ended(self.maker) || born(self.maker) != self.born
    }
}

/// Images that a mkdir has made, while the process that made them runs.
#[derive(Default)]
pub(in crate::fs) struct Shells(Mutex<Vec<Shell>>);

impl Shells {
    /// Notes that a process has made an image by mkdir.
    pub(in crate::fs) fn note(&self, caller: Caller, image: u32) {
        let maker = if caller.pid == 0 { 0 } else { of_thread(caller.pid) };
        self.0.lock().push(Shell { image, maker, born: born(maker), refused: None });
    }

    fn note_refused(&self, caller: Caller, image: u32) {
        let mut all = self.0.lock();
        if all.iter().all(|shell| shell.image != image) {
            return;
        }
        let process = if caller.pid == 0 { 0 } else { of_thread(caller.pid) };
        // rsync receives files in a child of the process that makes directories.
        let parent = parent(process);
        let by_maker = |shell: &&mut Shell| {
            shell.image == image && (shell.maker == process || Some(shell.maker) == parent)
        };
        all.iter_mut().filter(by_maker).for_each(|shell| shell.refused = Some(Instant::now()));
    }

    /// Takes out the images whose makers have ended. Those whose makers were refused nothing stay images,
    /// and are only forgotten here.
    fn take_left(&self) -> Vec<Shell> {
        let mut all = self.0.lock();
        let left = all.extract_if(.., |shell| shell.is_left());
        left.filter(|shell| shell.refused.is_some()).collect()
    }

    /// Puts an image back that cannot go yet: the next look tries again.
    fn put_back(&self, shell: Shell) {
        self.0.lock().push(shell);
    }
}

/// Notes that something was refused in a directory.
pub(in crate::fs) fn note_refused_in(fs: &ImageFs, caller: Caller, directory: NodeId) {
    if let NodeId::Image { serial, part: ImagePart::Dir, .. } = directory {
        fs.shells.note_refused(caller, serial);
    }
}

/// Deletes the images that are left without a version.
pub(in crate::fs) fn drop_left(fs: &ImageFs) {
    for shell in fs.shells.take_left() {
        let image = shell.image;
        let place = Destination::Image(image);
        let uid = fs.store.catalog.read().images.get(&image).map(|image| image.uid);
        let foreign =
            fs.stagings.owners(place).chain(fs.uploads.owners(place)).any(|owner| Some(owner) != uid);
        if foreign {
            continue;
        }
        if fs.uploads.is_written(place) {
            // The kernel says that a file is closed a moment after close(2) has returned.
            fs.shells.put_back(shell);
            continue;
        }
        match versions::drop_shell(&fs.store, image) {
            Ok(Some(name)) => {
                // What the maker has staged in the image goes with it.
                fs.stagings.remove_all(place);
                fs.uploads.remove_all(place);
                fs.store.journal.log(
                    uid.unwrap_or(0),
                    "mkdir",
                    &name,
                    "gone: nothing that was copied into it is an image",
                );
                fs.root_has_changed();
                fs.forget_later(NodeId::Root.ino(), name.into_bytes());
            }
            Ok(None) => {}
            Err(e) => log::error!("an image without versions stays: {e}"),
        }
    }
}
