//! Many hands: eight clients make gestures on the same few images at once, and there must be an order in
//! which the contract would have answered each as it was answered. Readers of `default` while it is switched;
//! two daemons.
//!
//! Control: histories with one answer changed, which the checker must refuse.

mod client;
mod daemons;
mod history;
mod model;
mod switches;
mod watchdog;

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use crate::common::{IMGFS, Mount};
use crate::dice::Dice;
use crate::{length, seed};
use client::{Hand, Shown};
use history::{History, Verdict, check, damage};
use model::{Answer, Gesture, Model};
use watchdog::Watchdog;

const HANDS: usize = 8;
/// Gestures of one hand between two moments at which all is quiet.
const GESTURES: usize = 40;
/// Rounds on one store.
const ROUNDS: usize = 50;
/// States of a search, until it is given up, some minutes and a gigabyte later: where all hands were held up
/// at once, the orders are too many. Of so many rounds that may be one, and one more.
const PLACES: usize = 60_000_000;
const UNDECIDED: usize = 100;
/// Damaged copies of each history.
const DAMAGED: usize = 2;

/// What is found in a round: the history with the numbers filled in, and what the store shows then.
fn round(mount: &Mount, seed: u64, marks: u32) -> (History, Shown) {
    let clock = Instant::now();
    let mut hands: Vec<Hand> = (0..HANDS)
        .map(|number| {
            let (dice, mark) = (Dice(seed ^ (number as u64) << 32), marks + (number * 2 * GESTURES) as u32);
            Hand { number, mnt: mount.mnt(), dice, clock, mark, calls: Vec::new() }
        })
        .collect();
    let _watchdog = Watchdog::new(&mount.mnt());
    std::thread::scope(|scope| {
        for hand in &mut hands {
            scope.spawn(|| (0..GESTURES).for_each(|_| hand.act()));
        }
    });
    let shown = Shown::of(&mount.mnt());
    let numbers = shown.numbers();
    let mut history: History = hands.into_iter().map(|hand| hand.calls).collect();
    for call in history.iter_mut().flatten() {
        if let (Gesture::Add { mark, .. }, Answer::Done) = (&call.gesture, &call.answer)
            && let Some(number) = numbers.get(mark)
        {
            call.answer = Answer::Number(*number);
        }
    }
    (history, shown)
}

/// Writes a history down, to be looked into.
fn keep(start: &Model, history: &History, shown: &Shown) -> PathBuf {
    let calls: String = history.iter().flatten().map(|call| format!("{call:?}\n")).collect();
    let (mut file, path) =
        tempfile::Builder::new().prefix("imgfs-history-").tempfile().unwrap().keep().unwrap();
    file.write_all(format!("{start:?}\n{calls}{shown:?}\n").as_bytes()).unwrap();
    path
}

/// Prints each call without which there is an order.
fn tell_culprits(start: &Model, history: &History, shown: &Shown) {
    for hand in 0..history.len() {
        for call in 0..history[hand].len() {
            let mut fewer = history.clone();
            let without = fewer[hand].remove(call);
            if matches!(
                check(start, &fewer, 300_000, |model| Shown::wanted(model) == *shown),
                Verdict::Allowed(_)
            ) {
                println!("there is an order without {without:?}");
            }
        }
    }
}

/// How many of the damaged histories there were; each must be refused.
fn control(start: &Model, history: &History, shown: &Shown, dice: &mut Dice) -> usize {
    let mut damaged = 0;
    for _ in 0..DAMAGED {
        let way = dice.roll(6);
        let mut history = history.clone();
        if !damage(&mut history, way, dice) {
            continue;
        }
        let verdict = check(start, &history, 50_000, |model| Shown::wanted(model) == *shown);
        assert!(!matches!(verdict, Verdict::Allowed(_)), "the checker allows a history damaged in way {way}");
        damaged += usize::from(matches!(verdict, Verdict::Refused(..)));
    }
    damaged
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn many_hands_see_one_order() {
    let (wanted, seed) = (length(5_000, 1_000_000) as usize, seed());
    let (mut dice, mut done, mut refused, mut damaged, mut rounds) = (Dice(seed), 0, 0, 0, 0);
    let mut undecided = 0;
    while done < wanted {
        let mount = Mount::new();
        let mut model = Model::default();
        for _ in 0..ROUNDS {
            let round_seed = dice.next();
            let (history, shown) = round(&mount, round_seed, (rounds * HANDS * 2 * GESTURES) as u32);
            rounds += 1;
            let ended = match check(&model, &history, PLACES, |model| Shown::wanted(model) == shown) {
                Verdict::Allowed(model) => model,
                Verdict::GivenUp(why) => {
                    println!(
                        "round {rounds}, seed {seed}: the search was given up: {}",
                        why.lines().next().unwrap_or_default()
                    );
                    println!("all of it: {}", keep(&model, &history, &shown).display());
                    undecided += 1;
                    assert!(
                        undecided <= 1 + rounds / UNDECIDED,
                        "{undecided} of {rounds} rounds are undecided"
                    );
                    // What the store is now only an order would say: on with a new one.
                    break;
                }
                Verdict::Refused(why) => {
                    println!("shown: {shown:?}\nall of it: {}", keep(&model, &history, &shown).display());
                    tell_culprits(&model, &history, &shown);
                    panic!("round {rounds}, seed {seed}: no order: {why}");
                }
            };
            damaged += control(&model, &history, &shown, &mut dice);
            done += history.iter().map(Vec::len).sum::<usize>();
            refused += history.iter().flatten().filter(|c| matches!(c.answer, Answer::Refused(_))).count();
            model = ended;
            model.rest();
            // Not always: what was deleted in one round comes back in another.
            if rounds % 3 == 0 {
                mount.ok(&format!("{IMGFS} gc --trash --store $STORE"));
                model.purge();
            }
            if done >= wanted {
                break;
            }
        }
        mount.fsck();
    }
    assert!(damaged > rounds / 2, "only {damaged} damaged histories were refused");
    println!(
        "{done} gestures of {HANDS} hands in {rounds} rounds, {refused} refused by rule, an order for all but {undecided} that were not decided; control: {damaged} damaged histories, all refused"
    );
}
