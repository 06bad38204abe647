//! One of many hands: makes the system calls of the gestures, and writes down what each was answered, and
//! when.

#![allow(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::fs::{AtFlags, Mode, OFlags, open, renameat, symlinkat, unlinkat};

use super::history::Call;
use super::model::{Answer, Gesture, Model, TrashName};
use crate::dice::Dice;

/// Few names, so that hands meet.
pub const NAMES: [&str; 4] = ["n0", "n1", "n2", "n3"];
/// Under which a hand uploads into the root: of the same image, and never under the same name.
const SUFFIXES: [&str; 8] = ["tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst", "tar.lz4", "tgz", "tzst"];

pub struct Hand {
    pub number: usize,
    pub mnt: PathBuf,
    pub dice: Dice,
    pub clock: Instant,
    /// The next upload's mark, unlike anybody else's.
    pub mark: u32,
    pub calls: Vec<Call>,
}

fn number_of(name: &str) -> Option<u8> {
    NAMES.iter().position(|n| *n == name).map(|n| n as u8)
}

pub fn parse_trash_name(text: &str) -> Option<TrashName> {
    let (text, again) = text.split_once('~').unwrap_or((text, "1"));
    let (name, number) =
        text.split_once('.').map_or((text, None), |(name, number)| (name, number.parse().ok()));
    Some(TrashName { name: number_of(name)?, number, again: again.parse().ok()? })
}

fn show_trash_name(t: TrashName) -> String {
    let number = t.number.map(|n| format!(".{n}")).unwrap_or_default();
    let again = if t.again > 1 { format!("~{}", t.again) } else { String::new() };
    format!("{}{number}{again}", NAMES[usize::from(t.name)])
}

/// A tar of one file, `mark`.
pub fn archive(mark: u32) -> Vec<u8> {
    let content = mark.to_string();
    let mut header = [0; 512];
    for (at, text) in
        [(0, "mark"), (100, "0000644\0"), (108, "0000000\0"), (116, "0000000\0"), (136, "00000000000\0")]
    {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(content.as_bytes());
    tar.resize(512 * 4, 0);
    tar
}

impl Hand {
    /// One gesture, of any kind.
    pub fn act(&mut self) {
        let name = self.dice.roll(NAMES.len()) as u8;
        let other = ((usize::from(name) + 1 + self.dice.roll(NAMES.len() - 1)) % NAMES.len()) as u8;
        let gesture = match self.dice.roll(100) {
            0..8 => Gesture::Add { name, mark: self.next_mark(), into: false },
            8..20 => Gesture::Add { name, mark: self.next_mark(), into: true },
            20..30 => Gesture::Switch { name },
            30..38 => {
                Gesture::Pin { name, to: self.some_number(name).filter(|_| !self.mark.is_multiple_of(3)) }
            }
            38..45 => Gesture::Rename { from: name, to: other },
            45..57 => Gesture::RemoveVersion { name, number: self.some_number(name).unwrap_or(0) },
            57..61 => Gesture::RemoveImage { name },
            61..65 => Gesture::RemoveId { name },
            65..74 => match self.some_trash() {
                Some(what) => {
                    let to = if what.number.is_some() && self.dice.roll(4) > 0 { what.name } else { name };
                    Gesture::Restore { what, to }
                }
                None => Gesture::List { name },
            },
            74..82 => Gesture::ReadDefault,
            82..88 => Gesture::ReadMark { name: None },
            88..94 => Gesture::ReadMark { name: Some(name) },
            _ => Gesture::List { name },
        };
        // Few: a child's execve holds up the uploads that it closes.
        let by_tool = self.dice.roll(50) == 0;
        if let Gesture::RemoveId { name } = gesture {
            return self.remove_recursively(name);
        }
        let begin = self.now();
        let answer = if by_tool { self.run(&gesture) } else { self.call(&gesture) };
        self.note(begin, gesture, answer);
    }

    fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    fn note(&mut self, begin: u64, gesture: Gesture, answer: io::Result<Answer>) {
        let end = self.now();
        let errno = |e: io::Error| Answer::Refused(e.raw_os_error().unwrap_or(-1));
        self.calls.push(Call { begin, end, gesture, answer: answer.unwrap_or_else(errno) });
    }

    fn next_mark(&mut self) -> u32 {
        self.mark += 1;
        self.mark
    }

    fn path(&self, name: u8) -> PathBuf {
        self.mnt.join(NAMES[usize::from(name)])
    }

    fn some_number(&mut self, name: u8) -> Option<u32> {
        let numbers: Vec<u32> = numbers_in(&self.path(name)).ok()?;
        if numbers.is_empty() { None } else { Some(*self.dice.pick(&numbers)) }
    }

    fn some_trash(&mut self) -> Option<TrashName> {
        let entries = fs::read_dir(self.mnt.join(".imgfs/trash")).ok()?;
        let all: Vec<TrashName> =
            entries.flatten().filter_map(|e| parse_trash_name(e.file_name().to_str()?)).collect();
        if all.is_empty() { None } else { Some(*self.dice.pick(&all)) }
    }

    /// As `rm -r` does: `.id` first, which is the deletion, and the directory last. imgfs knows a walker by
    /// its thread.
    fn remove_recursively(&mut self, name: u8) {
        let path = self.path(name);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let begin = self.now();
                let removed = fs::remove_file(path.join(".id")).map(|()| Answer::Done);
                let goes_on = removed.is_ok();
                self.note(begin, Gesture::RemoveId { name }, removed);
                if goes_on {
                    let begin = self.now();
                    let ended = fs::remove_dir(&path).map(|()| Answer::Done);
                    self.note(begin, Gesture::EndWalk { name }, ended);
                }
            });
        });
    }

    /// The system calls that the tools make.
    fn call(&mut self, gesture: &Gesture) -> io::Result<Answer> {
        match gesture {
            Gesture::Add { name, mark, into } => {
                let mut file = File::create(self.upload_path(*name, *mark, *into))?;
                file.write_all(&archive(*mark))?;
                close(file)?;
            }
            Gesture::Switch { name } => self.link(open_dir(&self.mnt)?, NAMES[usize::from(*name)])?,
            Gesture::Pin { name, to } => {
                let to = to.map_or("latest".into(), |n| n.to_string());
                self.link(open_dir(&self.path(*name))?, &to)?;
            }
            Gesture::Rename { from, to } => fs::rename(self.path(*from), self.path(*to))?,
            Gesture::RemoveVersion { name, number } => {
                fs::remove_dir(self.path(*name).join(number.to_string()))?
            }
            Gesture::RemoveImage { name } | Gesture::EndWalk { name } => fs::remove_dir(self.path(*name))?,
            Gesture::RemoveId { name } => fs::remove_file(self.path(*name).join(".id"))?,
            Gesture::Restore { what, to } => {
                let (from, to) = self.restore_paths(*what, *to);
                fs::rename(from, to)?;
            }
            Gesture::ReadDefault => {
                let target = fs::read_link(self.mnt.join("default"))?;
                let name =
                    target.to_str().and_then(number_of).ok_or_else(|| io::Error::from_raw_os_error(-2))?;
                return Ok(Answer::Name(name));
            }
            Gesture::ReadMark { name } => return read_mark(&self.default_of(*name).join("rootfs/mark")),
            Gesture::List { name } => return numbers_in(&self.path(*name)).map(Answer::Numbers),
        }
        Ok(Answer::Done)
    }

    fn upload_path(&self, name: u8, mark: u32, into: bool) -> PathBuf {
        let image = self.path(name);
        if into { image.join(format!("u{mark}.tar")) } else { image.with_extension(SUFFIXES[self.number]) }
    }

    fn default_of(&self, name: Option<u8>) -> PathBuf {
        name.map_or_else(|| self.mnt.join("default"), |n| self.path(n)).join("default")
    }

    fn restore_paths(&self, what: TrashName, to: u8) -> (PathBuf, PathBuf) {
        let shown = show_trash_name(what);
        let into = self.path(to);
        let target = if what.number.is_some() { into.join(&shown) } else { into };
        (self.mnt.join(".imgfs/trash").join(shown), target)
    }

    /// `ln -sfn TARGET default`.
    fn link(&mut self, dir: OwnedFd, target: &str) -> io::Result<()> {
        // One may be left in an image that was deleted meanwhile, and comes back.
        let temporary = format!(".ln{}", self.next_mark());
        symlinkat(target, &dir, &temporary)?;
        let renamed = renameat(&dir, &temporary, &dir, "default");
        if renamed.is_err() {
            let _ = unlinkat(&dir, &temporary, AtFlags::empty());
        }
        Ok(renamed?)
    }

    /// The same by the tool.
    fn run(&mut self, gesture: &Gesture) -> io::Result<Answer> {
        let text = |path: PathBuf| path.display().to_string();
        let words: Vec<String> = match gesture {
            Gesture::Add { name, mark, into } => {
                let source = self.mnt.with_file_name("src").join(format!("{mark}.tar"));
                fs::write(&source, archive(*mark))?;
                vec!["cp".into(), text(source), text(self.upload_path(*name, *mark, *into))]
            }
            Gesture::Switch { name } => {
                vec![
                    "ln".into(),
                    "-sfn".into(),
                    NAMES[usize::from(*name)].into(),
                    text(self.mnt.join("default")),
                ]
            }
            Gesture::Rename { from, to } => {
                vec!["mv".into(), "-T".into(), text(self.path(*from)), text(self.path(*to))]
            }
            Gesture::RemoveVersion { name, number } => {
                vec!["rmdir".into(), text(self.path(*name).join(number.to_string()))]
            }
            Gesture::RemoveImage { name } => vec!["rmdir".into(), text(self.path(*name))],
            Gesture::ReadMark { name } => {
                vec!["cat".into(), text(self.default_of(*name).join("rootfs/mark"))]
            }
            _ => return self.call(gesture),
        };
        let ran = Command::new(&words[0]).args(&words[1..]).env("LC_ALL", "C").output()?;
        let (out, said) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        if ran.status.success() {
            return Ok(out.trim().parse().map_or(Answer::Done, Answer::Mark));
        }
        let known =
            [("No such file", libc::ENOENT), ("resource busy", libc::EBUSY), ("File exists", libc::EEXIST)];
        // mv was told that the target is there, and then did not find it.
        // Or found that both are the same.
        let gone = [("cannot overwrite non-directory", libc::EEXIST), ("are the same file", libc::EEXIST)];
        let more =
            [("Read-only", libc::EROFS), ("not permitted", libc::EPERM), ("Stale file handle", libc::ESTALE)];
        let errno = known
            .into_iter()
            .chain(gone)
            .chain(more)
            .find(|(words, _)| said.contains(words))
            .map(|(_, errno)| errno);
        Err(io::Error::from_raw_os_error(errno.unwrap_or_else(|| panic!("{words:?} says {said}"))))
    }
}

/// close(2), whose error says what became of an upload.
pub fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is given away here, and nobody else has it.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?)
}

fn read_mark(path: &Path) -> io::Result<Answer> {
    let text = fs::read_to_string(path)?;
    Ok(Answer::Mark(text.trim().parse().map_err(|_| io::Error::from_raw_os_error(-3))?))
}

fn numbers_in(image: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(image)? {
        numbers.extend(entry?.file_name().to_str().and_then(|n| n.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What an image is pinned to, and its versions with their marks.
type Held = (Option<u32>, BTreeMap<u32, u32>);

/// What the mount shows when all is quiet.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub default: Option<u8>,
    /// Images by name, and in the trash: which of two pins was the last is seen when one comes back.
    pub images: BTreeMap<u8, Held>,
    pub trashed_images: BTreeMap<TrashName, Held>,
    pub trashed_versions: BTreeMap<TrashName, u32>,
}

impl Shown {
    pub fn of(mnt: &Path) -> Shown {
        let mut shown = Shown::default();
        let mark = |version: &Path| match read_mark(&version.join("rootfs/mark")) {
            Ok(Answer::Mark(mark)) => mark,
            other => panic!("{}: {other:?}", version.display()),
        };
        let held = |image: &Path| -> Held {
            let pinned =
                fs::read_link(image.join("default")).ok().and_then(|to| to.to_str().unwrap().parse().ok());
            (
                pinned,
                numbers_in(image)
                    .unwrap()
                    .into_iter()
                    .map(|n| (n, mark(&image.join(n.to_string()))))
                    .collect(),
            )
        };
        shown.default =
            fs::read_link(mnt.join("default")).ok().map(|t| number_of(t.to_str().unwrap()).unwrap());
        for (n, name) in NAMES.iter().enumerate().filter(|(_, name)| mnt.join(name).exists()) {
            shown.images.insert(n as u8, held(&mnt.join(name)));
        }
        for entry in fs::read_dir(mnt.join(".imgfs/trash")).unwrap() {
            let entry = entry.unwrap();
            let name = parse_trash_name(entry.file_name().to_str().unwrap()).unwrap();
            if name.number.is_some() {
                shown.trashed_versions.insert(name, mark(&entry.path()));
            } else {
                shown.trashed_images.insert(name, held(&entry.path()));
            }
        }
        shown
    }

    /// What the mount has to show.
    pub fn wanted(model: &Model) -> Shown {
        let mut shown = Shown { default: model.default.map(|d| model.images[d].name), ..Shown::default() };
        for image in &model.images {
            let held = (image.pinned, image.live().collect());
            match image.trash {
                Some(name) => drop(shown.trashed_images.insert(name, held)),
                None => drop(shown.images.insert(image.name, held)),
            }
            shown.trashed_versions.extend(image.versions.values().filter_map(|v| Some((v.trash?, v.mark))));
        }
        shown
    }

    /// The numbers that uploads were given, by their marks. A mark is there once.
    pub fn numbers(&self) -> BTreeMap<u32, u32> {
        let images = self.images.values().chain(self.trashed_images.values());
        let in_images = images.flat_map(|(_, versions)| versions).map(|(number, mark)| (*mark, *number));
        let alone = self.trashed_versions.iter().map(|(name, mark)| (*mark, name.number.unwrap()));
        let all: Vec<(u32, u32)> = in_images.chain(alone).collect();
        let marks: BTreeSet<u32> = all.iter().map(|(mark, _)| *mark).collect();
        assert_eq!(marks.len(), all.len(), "an upload is two versions: {self:?}");
        all.into_iter().collect()
    }
}
