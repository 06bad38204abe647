//! A load: gestures with real tools, each done on what the ones before have left, and what may be seen after
//! them.

/// A gesture. Of one in several steps any may be the last that reached the disk.
pub enum Gesture {
    Whole(&'static str, &'static str),
    Steps(&'static str, &'static str),
}

use Gesture::{Steps, Whole};

/// Makes the archives that only these gestures use: many small files, and every third of them.
pub const PREPARE: &str = "cd src; mkdir m; for n in $(seq 400); do head -c 900 /dev/urandom > m/$n; done; tar -C m -cf many.tar .; \
     rm m/*[124578]; tar -C m -cf few.tar .";

pub const GESTURES: &[Gesture] = &[
    Whole("a first version", "cp $S/a.tar web.tar"),
    Whole("an image beside it", "cp $S/d.tar.gz db.tar.gz"),
    Whole("the next version", "cp $S/b.tar web.tar"),
    Whole("the same again", "cp $S/b.tar web.tar"),
    Whole("large content", "cp $S/large.tar big.tar"),
    Whole("a staged one", "cp $S/c.tar .web.tar; mv .web.tar web.tar"),
    Whole("default", "ln -sfn db default"),
    Whole("a pin", "ln -sfn 0 web/default"),
    Whole("an alias", "ln -s web/1 old"),
    Whole("a rename", "mv web site"),
    Whole("an edit", "setfattr -n user.imgfs.storage -v small site"),
    Steps("two at once", "cp $S/many.tar many.tar & cp $S/c.tar side.tar && wait $!"),
    Whole("less of it", "cp $S/few.tar many.tar"),
    Whole("a deletion of most of a segment", "rmdir many/0"),
    Whole("a gc that writes it anew", "$IMGFS gc --trash --store $STORE"),
    Whole("a repack", "$IMGFS repack --store $STORE"),
    Whole("an update of what is packed", "cp $S/large2.tar big.tar"),
    Whole("a deletion", "rmdir site/2"),
    Whole("its undoing", "mv .imgfs/trash/site.2 site/"),
    Whole("an image's deletion", "rm -r site"),
    Whole("another deletion", "rmdir big/0"),
    Steps("a gc", "$IMGFS gc --trash --store $STORE"),
    Whole("new content in old places", "cp $S/many.tar new.tar"),
    Whole("what is to be fast", "setfattr -n user.imgfs.storage -v fast big"),
    Whole("a second repack", "$IMGFS repack --store $STORE"),
    Whole("several files", "mkdir .two; cp $S/a.tar .two/rootfs.tar; mv .two two"),
    Whole("another default", "ln -sfn big default"),
    Steps("more deletions", "rm -r db new side"),
    Steps("a second gc", "$IMGFS gc --trash --store $STORE"),
];

impl Gesture {
    /// Its name, and whether it has steps.
    pub fn name(&self) -> (&'static str, bool) {
        match self {
            Whole(name, _) => (name, false),
            Steps(name, _) => (name, true),
        }
    }

    pub fn script(&self) -> &'static str {
        let (Whole(_, script) | Steps(_, script)) = self;
        script
    }
}

/// A gesture of a load, as it went: from where to where in the log of what reached the disk, and what is
/// shown then.
pub struct Done {
    pub name: &'static str,
    pub begun: usize,
    pub acknowledged: usize,
    pub steps: bool,
    pub shows: String,
}

/// Whether a store may show this after all was lost that came after `cut`: what it showed after the last
/// gesture that was acknowledged, or what the one under way then makes of it.
///
/// Errors: what it should have shown.
pub fn judge(done: &[Done], cut: usize, shows: &str) -> Result<(), String> {
    let last = done.iter().rposition(|d| d.acknowledged <= cut);
    // A store that is not even made yet shows what a new one does.
    let before = &done[last.unwrap_or(0)];
    let under_way = done.get(last.map_or(0, |last| last + 1)).filter(|d| d.begun < cut);
    // Of several steps some are done: what neither takes away nor adds is there.
    let between = |d: &Done| {
        let both = before.shows.lines().filter(|line| has(&d.shows, line));
        d.steps
            && both.into_iter().all(|line| has(shows, line))
            && shows.lines().all(|l| has(&before.shows, l) || has(&d.shows, l))
    };
    if shows == before.shows || under_way.is_some_and(|d| shows == d.shows || between(d)) {
        return Ok(());
    }
    let then = under_way
        .map_or(String::new(), |d| format!("\n{} was under way, which makes it:\n{}", d.name, d.shows));
    Err(format!("it shows:\n{shows}\nand after {} it showed:\n{}{then}", before.name, before.shows))
}

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|other| other == line)
}
