//! The contract of the gestures as a sequential machine: what each does to a store, and what it answers.
//!
//! The kernel walks a path name by name, so a gesture on `web/1` is two steps: `web` is found, then the
//! change is made in what was found. Between them another hand may rename it. Each step happens at one
//! moment.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// The step of what is done, and not yet known to the kernel.
const SETTLES: u8 = 100;

/// What a name in the trash is made of: `web.1~2` is the second version 1 of web.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrashName {
    pub name: u8,
    pub number: Option<u32>,
    pub again: u32,
}

/// A version; `mark` is the upload that it came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    pub mark: u32,
    pub trash: Option<TrashName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    pub name: u8,
    pub trash: Option<TrashName>,
    pub next: u32,
    pub pinned: Option<u32>,
    /// When it was deleted, and nobody has named another since.
    pub was_default: bool,
    pub versions: BTreeMap<u32, Version>,
}

/// A store. An image is called by its place here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Model {
    pub images: Vec<Rc<Image>>,
    pub default: Option<usize>,
    /// Names that the kernel may still know, while the removal or the renaming is being answered.
    lingering: Vec<(u8, usize)>,
    lingering_versions: Vec<(usize, u32)>,
}

#[derive(Clone, Debug)]
pub enum Gesture {
    /// `cp x.tar web.tar`, `cp x.tar web/`: the close publishes.
    Add {
        name: u8,
        mark: u32,
        into: bool,
    },
    /// `ln -sfn web default`; in an image.
    Switch {
        name: u8,
    },
    Pin {
        name: u8,
        to: Option<u32>,
    },
    Rename {
        from: u8,
        to: u8,
    },
    RemoveVersion {
        name: u8,
        number: u32,
    },
    RemoveImage {
        name: u8,
    },
    /// How `rm -r` begins; and how it ends, when it has deleted the image.
    RemoveId {
        name: u8,
    },
    EndWalk {
        name: u8,
    },
    /// `mv .imgfs/trash/web.1 web/`, `mv .imgfs/trash/web www`.
    Restore {
        what: TrashName,
        to: u8,
    },
    ReadDefault,
    /// A file of the image's default version; of the default image's.
    ReadMark {
        name: Option<u8>,
    },
    List {
        name: u8,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Name(u8),
    /// The version's number, looked up by its content when all was quiet.
    Number(u32),
    Mark(u32),
    Numbers(Vec<u32>),
    Refused(i32),
}

/// How far a gesture is: its next step, and what it has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Progress {
    pub step: u8,
    image: u16,
    number: u32,
}

pub enum Step {
    /// Not with this answer, here.
    Impossible,
    Goes(Progress),
    /// Changed, and not answered yet.
    Moves(Progress, Model),
    /// Answered; what the store is then, if it was changed.
    Ends(Option<Model>),
}

impl Model {
    pub fn named(&self, name: u8) -> Option<usize> {
        self.images.iter().position(|i| i.trash.is_none() && i.name == name)
    }

    pub fn trash_names(&self) -> BTreeSet<TrashName> {
        self.images
            .iter()
            .flat_map(|i| i.trash.into_iter().chain(i.versions.values().filter_map(|v| v.trash)))
            .collect()
    }

    fn free_trash_name(&self, name: u8, number: Option<u32>) -> TrashName {
        let taken = self.trash_names();
        let all = (1..).map(|again| TrashName { name, number, again });
        all.into_iter().find(|t| !taken.contains(t)).expect("numbers do not end")
    }

    /// All is quiet: every call was answered.
    pub fn rest(&mut self) {
        self.lingering.clear();
        self.lingering_versions.clear();
    }

    /// The trash is emptied.
    pub fn purge(&mut self) {
        let default = self.default.map(|d| self.images[d].clone());
        self.images.retain(|i| i.trash.is_none());
        self.default = default.and_then(|d| self.images.iter().position(|i| Rc::ptr_eq(i, &d)));
        for image in &mut self.images {
            Rc::make_mut(image).versions.retain(|_, v| v.trash.is_none());
        }
    }

    fn changed(&self, image: usize, work: impl FnOnce(&mut Image)) -> Step {
        let mut model = self.clone();
        work(Rc::make_mut(&mut model.images[image]));
        Step::Ends(Some(model))
    }

    /// The change is made, and the old name lingers.
    fn lingers(mut self, name: u8, image: usize, at: Progress) -> Step {
        self.remember(name, image);
        Step::Moves(Progress { step: SETTLES, image: image as u16, ..at }, self)
    }

    fn remember(&mut self, name: u8, image: usize) {
        if !self.lingering.contains(&(name, image)) {
            self.lingering.push((name, image));
        }
    }

    /// The kernel knows, too: with that the call is answered.
    fn settle(&self, gesture: &Gesture, at: Progress) -> Step {
        let (mut model, image) = (self.clone(), usize::from(at.image));
        if let Gesture::RemoveVersion { number, .. } = gesture {
            model.lingering_versions.retain(|v| *v != (image, *number));
        } else if let Some(found) = model.lingering.iter().position(|(_, i)| *i == image) {
            model.lingering.remove(found);
        }
        Step::Ends(Some(model))
    }

    fn remove_image(&self, at: usize) -> Result<Model, i32> {
        if self.default == Some(at) && self.images.iter().filter(|i| i.trash.is_none()).count() > 1 {
            return Err(libc::EBUSY);
        }
        let trash = self.free_trash_name(self.images[at].name, None);
        let mut model = self.clone();
        let was_default = model.default == Some(at);
        let buried = Rc::make_mut(&mut model.images[at]);
        (buried.trash, buried.was_default) = (Some(trash), was_default);
        if was_default {
            model.default = None;
        }
        Ok(model)
    }

    /// How many ways there are in which a path may be walked: as the store says, and as the kernel may
    /// remember it.
    pub fn ways(&self) -> usize {
        let of = |(name, image)| self.lingering.iter().filter(|(n, i)| *n == name || *i == image).count();
        let most = self.lingering.iter().map(|l| of(*l)).max().unwrap_or_default();
        1 + most.max(usize::from(!self.lingering_versions.is_empty()))
    }

    /// What a link to the image says: its name, or one that it had before a renaming that is not answered
    /// yet.
    fn called(&self, image: usize, way: usize) -> Option<u8> {
        let mut before = self.lingering.iter().filter(|(_, i)| *i == image).map(|(name, _)| *name);
        way.checked_sub(1).map_or(Some(self.images[image].name), |nth| before.nth(nth))
    }

    /// The image that a path with this name leads to.
    fn walk(&self, name: u8, way: usize) -> Option<usize> {
        let mut remembered = self.lingering.iter().filter(|(n, _)| *n == name).map(|(_, image)| *image);
        way.checked_sub(1).and_then(|nth| remembered.nth(nth)).or_else(|| self.named(name))
    }

    /// The next step of a gesture, if it may lead to this answer, in one of the `ways`.
    pub fn step(&self, gesture: &Gesture, answer: &Answer, at: Progress, way: usize) -> Step {
        if at.step == SETTLES {
            return self.settle(gesture, at);
        }
        // The kernel's own, which found the directory of a name being moved: nothing was asked of imgfs.
        if *answer == Answer::Refused(libc::ESTALE) {
            return Step::Ends(None);
        }
        let says = |wanted: &Answer| if answer == wanted { Step::Ends(None) } else { Step::Impossible };
        let refuses = |errno: i32| says(&Answer::Refused(errno));
        let found = |image: usize| Step::Goes(Progress { step: at.step + 1, image: image as u16, number: 0 });
        let done = |step: Step, wanted: &Answer| if answer == wanted { step } else { Step::Impossible };
        let look_up = |name: u8| self.walk(name, way).map_or_else(|| refuses(libc::ENOENT), found);
        let serial = usize::from(at.image);
        let here = self.images.get(serial);
        let dead = here.is_none_or(|i| i.trash.is_some());
        match (gesture, at.step) {
            (Gesture::Add { name, into: true, .. }, 0)
            | (Gesture::Pin { name, .. } | Gesture::RemoveVersion { name, .. }, 0)
            | (Gesture::RemoveId { name } | Gesture::List { name }, 0)
            | (Gesture::ReadMark { name: Some(name) }, 0) => look_up(*name),
            (Gesture::Restore { what, to }, 0) if what.number.is_some() => look_up(*to),

            (Gesture::Add { into: true, .. }, _) if dead => refuses(libc::ENOENT),
            // GNU cp found nothing there, and creates exclusively: between the two an image got this name
            // that has a receipt of that file.
            (Gesture::Add { into: false, .. }, _) if *answer == Answer::Refused(libc::EEXIST) => {
                Step::Ends(None)
            }
            (Gesture::Add { name, mark, into }, _) => {
                let mut model = self.clone();
                let image = if *into { Some(serial) } else { self.named(*name) };
                let image = image.unwrap_or_else(|| {
                    let new = Image {
                        name: *name,
                        trash: None,
                        next: 0,
                        pinned: None,
                        was_default: false,
                        versions: BTreeMap::new(),
                    };
                    model.images.push(new.into());
                    model.images.len() - 1
                });
                model.default = model.default.or(Some(image));
                let image = Rc::make_mut(&mut model.images[image]);
                let number = image.next;
                image.versions.insert(number, Version { mark: *mark, trash: None });
                image.next += 1;
                done(Step::Ends(Some(model)), &Answer::Number(number))
            }

            // GNU ln found the link there, and then not to replace it: the last image went meanwhile.
            (Gesture::Switch { .. }, _) if *answer == Answer::Refused(libc::EEXIST) => Step::Ends(None),
            (Gesture::Switch { name }, step) => match self.named(*name) {
                None => refuses(libc::ENOENT),
                Some(_) if step == 0 => Step::Goes(Progress { step: 1, ..at }),
                Some(image) => {
                    let mut model = Model { default: Some(image), ..self.clone() };
                    for before in model.images.iter_mut().filter(|i| i.was_default) {
                        Rc::make_mut(before).was_default = false;
                    }
                    done(Step::Ends(Some(model)), &Answer::Done)
                }
            },
            (Gesture::Pin { to, .. }, step) => {
                let there = here.is_some_and(|i| {
                    to.is_none_or(|n| i.versions.get(&n).is_some_and(|v| v.trash.is_none()))
                });
                if !there || (dead && step == 2) {
                    refuses(libc::ENOENT)
                } else if step == 1 {
                    Step::Goes(Progress { step: 2, ..at })
                } else {
                    done(self.changed(serial, |i| i.pinned = *to), &Answer::Done)
                }
            }
            (Gesture::Rename { from, to }, _) => match (self.named(*from), self.named(*to)) {
                // mv looked at both, and found the same image, which was renamed so between the two.
                (None, Some(_)) if *answer == Answer::Refused(libc::EEXIST) => Step::Ends(None),
                (None, _) => refuses(libc::ENOENT),
                (_, Some(_)) => refuses(libc::EEXIST),
                (Some(image), None) if *answer == Answer::Done => {
                    let mut model = self.clone();
                    Rc::make_mut(&mut model.images[image]).name = *to;
                    model.lingers(*from, image, at)
                }
                _ => Step::Impossible,
            },

            (Gesture::RemoveVersion { number, .. }, _) => {
                let image = &self.images[serial];
                let live = || image.versions.values().filter(|v| v.trash.is_none()).count();
                if dead {
                    // In the trash nothing changes; the kernel may know that the directory is gone.
                    return match answer {
                        Answer::Refused(libc::ENOENT | libc::EROFS) => Step::Ends(None),
                        _ => Step::Impossible,
                    };
                }
                if image.versions.get(number).is_none_or(|v| v.trash.is_some()) {
                    return refuses(libc::ENOENT);
                }
                if live() == 1 || image.pinned == Some(*number) {
                    return refuses(libc::EBUSY);
                }
                let trash = self.free_trash_name(image.name, Some(*number));
                let mut model = self.clone();
                let buried = Rc::make_mut(&mut model.images[serial]).versions.get_mut(number);
                buried.expect("looked up").trash = Some(trash);
                model.lingering_versions.push((serial, *number));
                done(Step::Moves(Progress { step: SETTLES, ..at }, model), &Answer::Done)
            }
            (Gesture::RemoveImage { name }, _) => {
                match self.named(*name).map(|image| (image, self.remove_image(image))) {
                    None => refuses(libc::ENOENT),
                    Some((_, Err(errno))) => refuses(errno),
                    Some((image, Ok(model))) => done(model.lingers(*name, image, at), &Answer::Done),
                }
            }
            (Gesture::RemoveId { .. }, _) if dead => refuses(libc::ENOENT),
            (Gesture::RemoveId { .. }, _) => match self.remove_image(serial) {
                Err(errno) => refuses(errno),
                // It may linger until the walk ends.
                Ok(mut model) => {
                    model.remember(self.images[serial].name, serial);
                    done(Step::Ends(Some(model)), &Answer::Done)
                }
            },
            (Gesture::EndWalk { name }, _) => {
                // Where there is one again, that stays; where it was renamed before it was deleted, there is
                // none.
                if *answer == Answer::Refused(libc::ENOENT) {
                    return Step::Ends(None);
                }
                let mut model = self.clone();
                model.lingering.retain(|(n, _)| n != name);
                if self.named(*name).is_some() {
                    Step::Impossible
                } else {
                    done(Step::Ends(Some(model)), &Answer::Done)
                }
            }

            (Gesture::Restore { what, .. }, 1) => {
                let home =
                    self.images.iter().position(|i| i.versions.values().any(|v| v.trash == Some(*what)));
                match home {
                    None => refuses(libc::ENOENT),
                    // The kernel may know that the directory is gone, and does not ask.
                    Some(_) if dead && *answer == Answer::Refused(libc::ENOENT) => Step::Ends(None),
                    Some(home) if home != serial => refuses(libc::EPERM),
                    // Also into an image that is in the trash by now: it shows the version once it is back.
                    Some(home) => {
                        let raise = |i: &mut Image| {
                            i.versions
                                .values_mut()
                                .filter(|v| v.trash == Some(*what))
                                .for_each(|v| v.trash = None);
                        };
                        done(self.changed(home, raise), &Answer::Done)
                    }
                }
            }
            (Gesture::Restore { what, to }, _) => {
                match self.images.iter().position(|i| i.trash == Some(*what)) {
                    None => refuses(libc::ENOENT),
                    Some(_) if self.named(*to).is_some() => refuses(libc::EEXIST),
                    Some(image) => {
                        let mut model = self.clone();
                        let raised = Rc::make_mut(&mut model.images[image]);
                        (raised.trash, raised.name) = (None, *to);
                        let was_default = std::mem::take(&mut raised.was_default);
                        model.default = model.default.filter(|_| !was_default).or(Some(image));
                        done(Step::Ends(Some(model)), &Answer::Done)
                    }
                }
            }

            (Gesture::ReadDefault, 0) => self.default.map_or_else(|| refuses(libc::ENOENT), found),
            (Gesture::ReadDefault, _) => {
                self.called(serial, way).map_or(Step::Impossible, |name| says(&Answer::Name(name)))
            }
            (Gesture::List { name }, _) => match answer {
                Answer::Refused(libc::ENOENT) if dead => Step::Ends(None),
                // What is listed of a directory while it is removed is anybody's guess, but of nothing else.
                // Also if the image is back by now, under another name.
                Answer::Numbers(numbers) if dead || here.is_some_and(|image| image.name != *name) => {
                    let own = |n: &u32| here.is_some_and(|image| image.versions.contains_key(n));
                    if numbers.iter().all(own) { Step::Ends(None) } else { Step::Impossible }
                }
                _ => says(&Answer::Numbers(self.images[serial].live().map(|(n, _)| n).collect())),
            },
            (Gesture::ReadMark { name }, step) => {
                self.read_mark(answer, if name.is_some() { step + 2 } else { step }, at, way)
            }
        }
    }

    /// `cat default/default/rootfs/mark`, name by name.
    fn read_mark(&self, answer: &Answer, step: u8, at: Progress, way: usize) -> Step {
        let lost =
            || if *answer == Answer::Refused(libc::ENOENT) { Step::Ends(None) } else { Step::Impossible };
        let next = Progress { step: at.step + 1, ..at };
        if step == 0 {
            return self.default.map_or_else(lost, |d| Step::Goes(Progress { image: d as u16, ..next }));
        }
        let image = &self.images[usize::from(at.image)];
        // The kernel may know that a directory is gone which it is about to walk through.
        if step > 2 && image.trash.is_some() && *answer == Answer::Refused(libc::ENOENT) {
            return Step::Ends(None);
        }
        match step {
            1 => match self.called(at.image.into(), way) {
                Some(name) => Step::Goes(Progress { number: name.into(), ..next }),
                None => Step::Impossible,
            },
            2 => {
                let found = self.walk(at.number as u8, way);
                found.map_or_else(lost, |found| {
                    Step::Goes(Progress { image: found as u16, number: 0, ..next })
                })
            }
            3 => match image.pinned {
                Some(number) => Step::Goes(Progress { number, step: at.step + 2, ..next }),
                None => Step::Goes(next),
            },
            4 => {
                let newest = image.live().next_back();
                newest.map_or_else(lost, |(number, _)| Step::Goes(Progress { number, ..next }))
            }
            5 if image.live().any(|(n, _)| n == at.number) => Step::Goes(next),
            5 if way > 0 && self.lingering_versions.contains(&(usize::from(at.image), at.number)) => {
                Step::Goes(next)
            }
            5 => lost(),
            _ => match image.versions.get(&at.number) {
                Some(version) if *answer == Answer::Mark(version.mark) => Step::Ends(None),
                Some(version) if version.trash.is_some() => lost(),
                _ => Step::Impossible,
            },
        }
    }
}

impl Image {
    pub fn live(&self) -> impl DoubleEndedIterator<Item = (u32, u32)> {
        self.versions.iter().filter(|(_, v)| v.trash.is_none()).map(|(n, v)| (*n, v.mark))
    }
}
