//! Named points between the steps of gestures, where tests/torture ends the process or has a step left out.
//!
//! They are in no release build: without its feature, `fail` makes nothing of them.

/// A step is done: here the process is killed, if a test has armed this point.
pub fn reached(point: &str) {
    let _ = point;
    fail::fail_point!(point, |_| {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::park();
    });
}

/// Whether a test wants this step left out, to see that its loss is noticed.
pub fn leaves_out(step: &str) -> bool {
    let _ = step;
    fail::fail_point!(step, |_| true);
    false
}

/// Arms what the environment names; for the program's beginning.
pub fn arm() {
    if fail::has_failpoints() {
        std::mem::forget(fail::FailScenario::setup());
    }
}
