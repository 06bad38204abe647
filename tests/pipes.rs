//! `imgfs ... | head`: a reader that goes away is no failure.

use crate::common::{IMGFS, Mount, sh};

/// Commands that print, with the exit status that each has beside a mount of one image.
const COMMANDS: &[(&str, i32)] = &[
    ("ls", 0),
    ("ls --json", 0),
    ("ls os=none", 1),
    ("status", 0),
    ("status --json", 0),
    ("fsck", 0),
    ("fsck --json", 0),
    ("gc", 0),
    ("repack", 0),
    ("diff web/0 web/1", 0),
    ("diff web/0 web/9", 1),
];

#[test]
fn a_command_whose_reader_has_gone_ends_silently() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; for n in {1..60}; do cp $S/c.tar image-with-a-long-name-$n.tar; done");
    m.ok(&format!("set -o pipefail; {IMGFS} ls --store $STORE | head -1 | grep -q NAME; {IMGFS} ls --json --store $STORE | head -1; {IMGFS} status --store $STORE | true"));
    let said = m.path("said");
    // The reader goes before the command begins, so that its first byte meets nobody.
    let run = |command: &str, streams: &str| {
        let script = format!(
            "{{ sleep 0.05; {IMGFS} {command} {streams}; c=$?; echo $c > code; }} | true; cat code; rm -f code"
        );
        let ran = sh(m.dir.path(), &script);
        ran.out.trim().parse::<i32>().unwrap_or_else(|_| panic!("{command} {streams}: {ran:?}"))
    };
    let store = m.path("store").display().to_string();
    for (command, code) in COMMANDS {
        let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
        let command = format!("{name} --store {store} {rest}");
        for streams in ["2> said", "2>&1"] {
            assert_eq!(run(&command, streams), *code, "{command} {streams}");
        }
        // What failed says so on standard error, and nothing else does.
        run(&command, "2> said");
        let text = std::fs::read_to_string(&said).unwrap();
        assert!(
            !text.contains("panicked") && (*code == 1) == text.contains("imgfs: ")
                || command.contains("os=none"),
            "{command}: {text}"
        );
    }
    for command in ["man", "completions bash", "--help", "ls --help"] {
        for streams in ["2> said", "2>&1"] {
            assert_eq!(run(command, streams), 0, "{command} {streams}");
        }
        assert_eq!(std::fs::read_to_string(&said).unwrap(), "", "{command}");
    }
    // A mount begins, and stays, although nobody hears that it did.
    let other = m.path("other");
    let ran = sh(
        m.dir.path(),
        &format!(
            "mkdir other; {{ sleep 0.05; {IMGFS} mount --store s2 other 2>&1; }} | true; mountpoint -q other && cp src/a.tar other/web.tar && {{ {IMGFS} umount other 2>&1; {IMGFS} umount other 2>&1; }} | true; not mountpoint -q {}",
            other.display()
        ),
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    m.fsck();
}
