//! Named points between the steps of gestures. tests/torture kills the process there, or leaves a step
//! out.
//!
//! Release builds do not contain them: without its feature, `fail` turns them into nothing.

/// Marks that a step is done. If a test has armed this point, the process is killed here.
pub fn reached(point: &str) {
    let _ = point;
    fail::fail_point!(point, |_| {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::park();
    });
}

/// Whether a test wants to leave out this step, to check that its absence is noticed.
pub fn leaves_out(step: &str) -> bool {
    let _ = step;
    fail::fail_point!(step, |_| true);
    false
}

/// Arms the points that the environment names. Called when the program starts.
pub fn arm() {
    if fail::has_failpoints() {
        std::mem::forget(fail::FailScenario::setup());
    }
}
