//! What happened, as files under `.imgfs`: refusals in words, jobs with their progress, the log of changes.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde_json::json;

use crate::changelog::ChangeLog;
use crate::error::{Error, Result};
use crate::manifest::{now, time, time_text};

/// Refusals, ended jobs and failed uploads that are kept.
const KEPT: usize = 1000;

pub struct Journal {
    refusals: Mutex<VecDeque<Refusal>>,
    jobs: Mutex<BTreeMap<u64, Arc<Job>>>,
    next_job: AtomicU64,
    /// By name: uploads that no close could refuse, whose, and why.
    failed: Mutex<VecDeque<(String, u32, String)>>,
    pub changes: ChangeLog,
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
        a.gesture == "read" && (a.uid, a.gesture, &a.path, &a.sentence) == (b.uid, b.gesture, &b.path, &b.sentence)
    }
}

/// Work that takes a while.
pub struct Job {
    pub id: u64,
    kind: &'static str,
    name: String,
    uid: u32,
    started_at: i64,
    pub bytes_done: AtomicU64,
    /// 0: not known.
    pub bytes_total: AtomicU64,
    state: Mutex<(String, Option<(i64, String)>)>,
}

impl Job {
    /// Says what the job does now.
    pub fn phase(&self, phase: &str) {
        self.state.lock().0 = phase.to_owned();
    }

    /// Ends the job, in words.
    pub fn end(&self, outcome: &str) {
        let mut state = self.state.lock();
        state.0 = "ended".into();
        state.1.get_or_insert((now(), outcome.to_owned()));
    }

    fn ended(&self) -> bool {
        self.state.lock().1.is_some()
    }

    fn document(&self) -> serde_json::Value {
        let state = self.state.lock();
        let total = self.bytes_total.load(Ordering::Relaxed);
        json!({
            "id": self.id, "kind": self.kind, "name": self.name, "uid": self.uid, "phase": state.0,
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
    pub fn open(dir: &Path) -> Result<Journal> {
        Ok(Journal {
            refusals: Mutex::default(),
            jobs: Mutex::default(),
            next_job: AtomicU64::new(1),
            failed: Mutex::default(),
            changes: ChangeLog::open(dir)?,
        })
    }

    /// Keeps a refusal for `.imgfs/errors`.
    pub fn refuse(&self, uid: u32, gesture: &'static str, path: &str, error: &Error) {
        log::warn!("{gesture} {path}: {error}");
        let refusal =
            Refusal { at: now(), uid, gesture, path: path.to_owned(), sentence: error.to_string(), remedy: error.remedy() };
        let mut all = self.refusals.lock();
        // Who reads on, or asks twice, is told once.
        if let Some(last) = all.front_mut().filter(|last| last.is_like(&refusal)) {
            last.at = refusal.at;
            return;
        }
        all.truncate(KEPT - 1);
        all.push_front(refusal);
    }

    /// `.imgfs/errors`: a line each, newest first, fields between tabs.
    pub fn errors_text(&self) -> String {
        let mut text = String::new();
        for r in self.refusals.lock().iter() {
            let line =
                [time_text(r.at), r.uid.to_string(), r.gesture.into(), r.path.clone(), r.sentence.clone(), r.remedy.into()];
            let _ = writeln!(text, "{}", line.map(|f| escape(&f)).join("\t"));
        }
        text
    }

    pub fn start_job(&self, kind: &'static str, name: &str, uid: u32) -> Arc<Job> {
        let job = Arc::new(Job {
            id: self.next_job.fetch_add(1, Ordering::Relaxed),
            kind,
            name: name.to_owned(),
            uid,
            started_at: now(),
            bytes_done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            state: Mutex::new(("started".into(), None)),
        });
        let mut jobs = self.jobs.lock();
        while jobs.len() >= KEPT {
            let Some(oldest) = jobs.values().find(|j| j.ended()).map(|j| j.id) else { break };
            jobs.remove(&oldest);
        }
        jobs.insert(job.id, job.clone());
        job
    }

    pub fn job_ids(&self) -> Vec<u64> {
        self.jobs.lock().keys().copied().collect()
    }

    /// Whose a job is, and its JSON.
    pub fn job_text(&self, id: u64) -> Option<(u32, String)> {
        let job = self.jobs.lock().get(&id)?.clone();
        Some((job.uid, crate::manifest::pretty(&job.document())))
    }

    pub fn running_jobs(&self) -> usize {
        self.jobs.lock().values().filter(|j| !j.ended()).count()
    }

    /// Jobs that somebody waits for.
    pub fn running_uploads(&self) -> usize {
        self.jobs.lock().values().filter(|j| matches!(j.kind, "upload" | "publish") && !j.ended()).count()
    }

    /// Notes an upload that was dropped and why, for `.imgfs/failed`.
    pub fn fail(&self, name: &str, uid: u32, why: &str) {
        let mut failed = self.failed.lock();
        failed.retain(|(n, ..)| n != name);
        if failed.len() >= KEPT {
            failed.pop_front();
        }
        failed.push_back((name.to_owned(), uid, format!("{} {}\n", time_text(now()), escape(why))));
    }

    pub fn failed_names(&self) -> Vec<String> {
        self.failed.lock().iter().map(|(n, ..)| n.clone()).collect()
    }

    /// Whose a failed upload was, and what became of it.
    pub fn failed_text(&self, name: &str) -> Option<(u32, String)> {
        self.failed.lock().iter().find(|(n, ..)| n == name).map(|(_, uid, text)| (*uid, text.clone()))
    }

    /// Forgets a failed upload: `rm .imgfs/failed/NAME`.
    pub fn forget_failed(&self, name: &str) -> bool {
        let mut failed = self.failed.lock();
        let before = failed.len();
        failed.retain(|(n, ..)| n != name);
        failed.len() < before
    }

    /// Adds a line to the log of changes: time, user, gesture, what of, what came of it.
    pub fn log(&self, uid: u32, gesture: &str, what: &str, outcome: &str) {
        log::info!("{gesture} {what}: {outcome}");
        let line = [time_text(now()), uid.to_string(), gesture.into(), what.into(), outcome.into()];
        self.changes.add(&format!("{}\n", line.map(|f: String| escape(&f)).join("\t")));
    }
}

/// Names come from users: no control character reaches a terminal or splits a line.
pub fn escape(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}
