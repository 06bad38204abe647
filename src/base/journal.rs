//! What happened, as files under `.imgfs`: refusals with their sentences, jobs with their progress, the
//! log of changes.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;

use crate::base::clock::{now, parse_time, time, time_text};
use crate::base::logfile::LogFile;
use crate::base::name::bound_name;
use crate::error::{Error, Result};

/// How many refusals, ended jobs and failed uploads are kept.
const KEPT: usize = 1000;
/// A job without progress for this long stands still: its client is stopped, or is itself waiting.
const STANDING: Duration = Duration::from_secs(10);

/// The journal, or the part of it that a view shows. The paths of a view's records begin with the
/// view's name, like the names of images bound to it.
#[derive(Clone)]
pub struct Journal {
    all: Arc<All>,
    view: Option<Arc<ViewOf>>,
}

struct ViewOf {
    name: String,
    /// Records before this time do not belong to this view.
    since: i64,
}

struct All {
    refusals: Mutex<VecDeque<Refusal>>,
    jobs: Mutex<BTreeMap<u64, Arc<Job>>>,
    next_job: AtomicU64,
    /// Failed uploads whose error no close could return: name, user and reason.
    failed: Mutex<VecDeque<(String, u32, String)>>,
    changes: LogFile,
}

struct Refusal {
    at: i64,
    uid: u32,
    gesture: &'static str,
    path: String,
    sentence: String,
    remedy: &'static str,
}

impl Refusal {
    fn is_like(&self, other: &Refusal) -> bool {
        let (a, b) = (self, other);
        a.gesture == "read"
            && (a.uid, a.gesture, &a.path, &a.sentence) == (b.uid, b.gesture, &b.path, &b.sentence)
    }
}

/// Work that takes a while.
pub struct Job {
    pub id: u64,
    kind: &'static str,
    name: String,
    uid: u32,
    started_at: i64,
    bytes_done: AtomicU64,
    /// 0 if it is not known.
    pub bytes_total: AtomicU64,
    state: Mutex<(String, Option<(i64, String)>)>,
    moved: Mutex<Instant>,
}

impl Job {
    /// Sets what the job does now.
    pub fn phase(&self, phase: &str) {
        self.state.lock().0 = phase.to_owned();
        *self.moved.lock() = Instant::now();
    }

    /// Sets how many bytes of the job are done.
    pub fn reached(&self, bytes: u64) {
        self.bytes_done.store(bytes, Ordering::Relaxed);
        *self.moved.lock() = Instant::now();
    }

    /// Ends the job with an outcome in words.
    pub fn end(&self, outcome: &str) {
        let mut state = self.state.lock();
        state.0 = "ended".into();
        state.1.get_or_insert((now(), outcome.to_owned()));
    }

    fn ended(&self) -> bool {
        self.state.lock().1.is_some()
    }

    fn is_moving(&self) -> bool {
        !self.ended() && self.moved.lock().elapsed() < STANDING
    }

    fn document(&self, name: &str) -> serde_json::Value {
        let state = self.state.lock();
        let total = self.bytes_total.load(Ordering::Relaxed);
        json!({
            "id": self.id, "kind": self.kind, "name": name, "uid": self.uid, "phase": state.0,
            "bytes_done": self.bytes_done.load(Ordering::Relaxed),
            "bytes_total": if total == 0 { serde_json::Value::Null } else { total.into() },
            "started_at": time(self.started_at),
            "ended_at": state.1.as_ref().map(|(at, _)| time(*at)),
            "outcome": state.1.as_ref().map(|(_, outcome)| outcome.clone()),
        })
    }
}

impl Journal {
    /// Opens the journal of the store in `dir`.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn open(dir: &Path) -> Result<Journal> {
        let all = All {
            refusals: Mutex::default(),
            jobs: Mutex::default(),
            next_job: AtomicU64::new(1),
            failed: Mutex::default(),
            changes: LogFile::open(dir)?,
        };
        Ok(Journal { all: Arc::new(all), view: None })
    }

    /// This journal for a view that was made at `since`.
    pub fn through(&self, view: &str, since: i64) -> Journal {
        Journal { all: self.all.clone(), view: Some(Arc::new(ViewOf { name: view.to_owned(), since })) }
    }

    /// A path as it is recorded. In a view it becomes `dc1::/web/1`.
    fn stored(&self, path: &str) -> String {
        match &self.view {
            Some(view) => bound_name(&view.name, &format!("/{}", path.trim_start_matches('/'))),
            None => path.to_owned(),
        }
    }

    /// The recorded name of a failed upload. It serves as a file name.
    fn stored_name(&self, name: &str) -> String {
        self.view.as_ref().map_or_else(|| name.to_owned(), |view| bound_name(&view.name, name))
    }

    /// The path of something that was done here. `None` if it was done elsewhere.
    fn done_here<'p>(&self, path: &'p str) -> Option<&'p str> {
        match &self.view {
            Some(view) => path.strip_prefix(&bound_name(&view.name, "/")),
            None => Some(path),
        }
    }

    /// A recorded path as it shows here. `None` if it does not show here.
    fn shown<'p>(&self, path: &'p str) -> Option<&'p str> {
        match &self.view {
            Some(view) => {
                let shown = path.trim_start_matches('/').strip_prefix(&bound_name(&view.name, ""))?;
                Some(shown.trim_start_matches('/'))
            }
            None => Some(path),
        }
    }

    /// Drops all records of a view that was removed.
    pub fn forget_view(&self, view: &str) {
        let of_view = self.through(view, 0);
        let is_told = |path: &str| of_view.shown(path).is_some();
        self.all.refusals.lock().retain(|r| !is_told(&r.path));
        self.all.jobs.lock().retain(|_, job| !is_told(&job.name));
        self.all.failed.lock().retain(|(name, ..)| !is_told(name));
    }

    /// Records a refusal for `.imgfs/errors`.
    pub fn refuse(&self, uid: u32, gesture: &'static str, path: &str, error: &Error) {
        log::warn!("{gesture} {path}: {error}");
        let refusal = Refusal {
            at: now(),
            uid,
            gesture,
            path: self.stored(path),
            sentence: error.to_string(),
            remedy: error.remedy(),
        };
        let mut all = self.all.refusals.lock();
        // A caller that reads on, or asks twice, causes only one record.
        if let Some(last) = all.front_mut().filter(|last| last.is_like(&refusal)) {
            last.at = refusal.at;
            return;
        }
        all.truncate(KEPT - 1);
        all.push_front(refusal);
    }

    /// `.imgfs/errors`: one line for each refusal, newest first, fields separated by tabs.
    pub fn errors_text(&self) -> String {
        let mut text = String::new();
        for r in self.all.refusals.lock().iter() {
            // Refusals of other views do not show here.
            let Some(path) = self.done_here(&r.path) else { continue };
            let line = [
                time_text(r.at),
                r.uid.to_string(),
                r.gesture.into(),
                path.into(),
                r.sentence.clone(),
                r.remedy.into(),
            ];
            let _ = writeln!(text, "{}", line.map(|f| escape(&f)).join("\t"));
        }
        text
    }

    pub fn start_job(&self, kind: &'static str, name: &str, uid: u32) -> Arc<Job> {
        let job = Arc::new(Job {
            id: self.all.next_job.fetch_add(1, Ordering::Relaxed),
            kind,
            name: self.stored(name),
            uid,
            started_at: now(),
            bytes_done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            state: Mutex::new(("started".into(), None)),
            moved: Mutex::new(Instant::now()),
        });
        let mut jobs = self.all.jobs.lock();
        while jobs.len() >= KEPT {
            let Some(oldest) = jobs.values().find(|j| j.ended()).map(|j| j.id) else { break };
            jobs.remove(&oldest);
        }
        jobs.insert(job.id, job.clone());
        job
    }

    pub fn job_ids(&self) -> Vec<u64> {
        self.all
            .jobs
            .lock()
            .values()
            .filter(|job| self.shown(&job.name).is_some())
            .map(|job| job.id)
            .collect()
    }

    /// The user of a job, and its JSON.
    pub fn job_text(&self, id: u64) -> Option<(u32, String)> {
        let job = self.all.jobs.lock().get(&id)?.clone();
        Some((job.uid, crate::base::json::pretty(&job.document(self.shown(&job.name)?))))
    }

    pub fn running_jobs(&self) -> usize {
        self.all.jobs.lock().values().filter(|j| !j.ended()).count()
    }

    /// Whether any job makes progress. Work that can wait gives way to such a job, but not to one that
    /// stands still.
    pub fn is_busy(&self) -> bool {
        self.all.jobs.lock().values().any(|j| j.is_moving())
    }

    /// Whether a job makes progress for which somebody waits.
    pub fn is_uploading(&self) -> bool {
        self.all.jobs.lock().values().any(|j| matches!(j.kind, "upload" | "publish") && j.is_moving())
    }

    /// Records why an upload was dropped, for `.imgfs/failed`.
    pub fn fail(&self, name: &str, uid: u32, why: &str) {
        let (name, mut failed) = (self.stored_name(name), self.all.failed.lock());
        failed.retain(|(n, ..)| *n != name);
        if failed.len() >= KEPT {
            failed.pop_front();
        }
        failed.push_back((name, uid, format!("{} {}\n", time_text(now()), escape(why))));
    }

    pub fn failed_names(&self) -> Vec<String> {
        self.all.failed.lock().iter().filter_map(|(n, ..)| self.shown(n)).map(str::to_owned).collect()
    }

    /// The user of a failed upload, and why it failed.
    pub fn failed_text(&self, name: &str) -> Option<(u32, String)> {
        let name = self.stored_name(name);
        self.all.failed.lock().iter().find(|(n, ..)| *n == name).map(|(_, uid, text)| (*uid, text.clone()))
    }

    /// Forgets a failed upload: `rm .imgfs/failed/NAME`.
    pub fn forget_failed(&self, name: &str) -> bool {
        let (name, mut failed) = (self.stored_name(name), self.all.failed.lock());
        let before = failed.len();
        failed.retain(|(n, ..)| *n != name);
        failed.len() < before
    }

    /// Adds a line to the log of changes: time, user, gesture, object, outcome.
    pub fn log(&self, uid: u32, gesture: &str, what: &str, outcome: &str) {
        let what = self.stored(what);
        log::info!("{gesture} {what}: {outcome}");
        let line = [time_text(now()), uid.to_string(), gesture.into(), what, outcome.into()];
        self.all.changes.add(&format!("{}\n", line.map(|f: String| escape(&f)).join("\t")));
    }

    /// Whether the log of changes exists, or the `n`th older one.
    pub fn has_log(&self, n: u32) -> bool {
        // A view must not show that others have filled a log.
        self.all.changes.has(n)
            && (n == 0 || self.view.is_none() || self.log_text(n).is_ok_and(|text| !text.is_empty()))
    }

    /// The log itself, if all of it shows. It can be read from any offset.
    pub fn whole_log(&self) -> Option<&LogFile> {
        self.view.is_none().then_some(&self.all.changes)
    }

    /// The lines of the log of changes that show here, or those of the `n`th older one.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn log_text(&self, n: u32) -> Result<String> {
        let mut all = Vec::new();
        self.all.changes.read(n, 0, usize::MAX, &mut all)?;
        let text = String::from_utf8_lossy(&all);
        let Some(view) = &self.view else { return Ok(text.into_owned()) };
        let mut told = String::new();
        for line in text.split_inclusive('\n') {
            let mut fields: Vec<&str> = line.split('\t').collect();
            let [at, _, _, path, ..] = fields[..] else { continue };
            if let Some(path) = self.shown(path)
                && parse_time(at).is_some_and(|at| at >= view.since)
            {
                // The outcome of a gesture elsewhere may contain names from there.
                if self.done_here(fields[3]).is_none() {
                    fields.truncate(4);
                    fields.push("by who has the store\n");
                }
                fields[3] = path;
                told.push_str(&fields.join("\t"));
            }
        }
        Ok(told)
    }
}

/// Escapes control characters. Names come from users, so none of them may reach a terminal or split a
/// line.
pub fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}
