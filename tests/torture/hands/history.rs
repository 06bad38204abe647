//! Is there an order of the gestures that the contract allows? The search of Wing and Gong, with Lowe's
//! memory.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash};

use foldhash::quality::FixedState;

use super::model::{Answer, Gesture, Model, Progress, Step};
use crate::dice::Dice;

/// A gesture of one hand, from its call to its answer, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Call {
    pub begin: u64,
    pub end: u64,
    pub gesture: Gesture,
    pub answer: Answer,
}

/// What each hand did, in order.
pub type History = Vec<Vec<Call>>;

#[derive(Debug)]
pub enum Verdict {
    /// With what the store is then.
    Allowed(Model),
    /// With how far any order goes, and what is open there.
    Refused(String),
    GivenUp(String),
}

#[derive(Clone, Hash)]
struct Config {
    hands: Vec<Place>,
    model: Model,
}

/// Where a hand stands: its call, and how far that is. `before`: how far it was before its last step, while
/// nothing was changed since.
#[derive(Clone, Copy, Default, Hash)]
struct Place {
    call: u16,
    at: Progress,
    before: Option<Progress>,
}

impl Config {
    fn key(&self) -> u64 {
        FixedState::default().hash_one(self)
    }

    /// What may come next: of any call that began before the first of the open ones was answered.
    fn next(&self, history: &History) -> Vec<Config> {
        let open = |hand: usize| history[hand].get(usize::from(self.hands[hand].call));
        let mut hands: Vec<usize> = (0..history.len()).filter(|h| open(*h).is_some()).collect();
        hands.sort_by_key(|h| open(*h).map(|c| c.end));
        let Some(first) = hands.first().and_then(|h| open(*h)).map(|c| c.end) else { return Vec::new() };
        let (mut changes, mut looks) = (Vec::new(), Vec::new());
        let ways = self.model.ways();
        for (hand, way) in hands.into_iter().flat_map(|h| (0..ways).map(move |way| (h, way))) {
            let (Some(call), place) = (open(hand).filter(|c| c.begin <= first), self.hands[hand]) else {
                continue;
            };
            let mut at = place.at;
            loop {
                let mut then = self.clone();
                match self.model.step(&call.gesture, &call.answer, at, way) {
                    Step::Impossible => break,
                    Step::Goes(next) => {
                        if at == place.at {
                            then.hands[hand] = Place { at: next, before: Some(at), ..place };
                            looks.push(then);
                        }
                        at = next;
                        continue;
                    }
                    Step::Moves(next, model) => {
                        then.hands[hand] = Place { at: next, before: None, ..place };
                        then.model = model;
                    }
                    Step::Ends(changed) => {
                        then.hands[hand] = Place { call: place.call + 1, ..Place::default() };
                        // An answer that changes nothing can as well be given now: no need to try anything
                        // else.
                        let Some(model) = changed else { return vec![then] };
                        then.model = model;
                    }
                }
                if then.needed(history) {
                    changes.push(then);
                }
                break;
            }
        }
        // Taken from the end.
        looks.extend(changes.into_iter().rev());
        looks
    }

    /// Whether all that was looked up just before a change would be found otherwise after it. Else it could
    /// as well be looked up later, and that is tried, too.
    fn needed(&mut self, history: &History) -> bool {
        for (place, calls) in self.hands.iter_mut().zip(history) {
            let (Some(before), Some(call)) = (place.before.take(), calls.get(usize::from(place.call))) else {
                continue;
            };
            let again = |way| self.model.step(&call.gesture, &call.answer, before, way);
            if (0..self.model.ways()).any(|way| matches!(again(way), Step::Goes(at) if at == place.at)) {
                return false;
            }
        }
        true
    }
}

/// Looks for an order in at most so many places. `ends`: whether this is what the store was when all was
/// quiet.
pub fn check(start: &Model, history: &History, most: usize, ends: impl Fn(&Model) -> bool) -> Verdict {
    let calls: usize = history.iter().map(Vec::len).sum();
    let begin = Config { hands: vec![Place::default(); history.len()], model: start.clone() };
    let (mut seen, mut stack, mut best) = (HashSet::new(), vec![begin], (0, None));
    let hands_open = |config: &Config| {
        let places: Vec<usize> = config.hands.iter().map(|p| usize::from(p.call)).collect();
        history.iter().zip(places).filter_map(|(calls, n)| calls.get(n)).collect::<Vec<_>>().into_iter()
    };
    let tell = |(done, config): (usize, Option<Config>)| {
        let config = config.expect("there is a first");
        let hands = config.hands.iter().zip(history);
        let open = hands.map(|(p, calls)| format!("  {:?} {:?}\n", p.at, calls.get(usize::from(p.call))));
        let open: String = open.collect();
        let first = hands_open(&config).map(|c| c.end).min().unwrap_or_default();
        let mut near: Vec<&Call> =
            history.iter().flatten().filter(|c| c.begin <= first && c.end + 5_000_000 >= first).collect();
        near.sort_by_key(|c| c.end);
        let near: String = near.into_iter().map(|c| format!("  {c:?}\n")).collect();
        format!("{done} of {calls} can be put in order, then:\n{open}around:\n{near}{:?}", config.model)
    };
    while let Some(config) = stack.pop() {
        if !seen.insert(config.key()) {
            continue;
        }
        if seen.len() > most {
            return Verdict::GivenUp(tell(best));
        }
        let done: usize = config.hands.iter().map(|place| usize::from(place.call)).sum();
        if done == calls && ends(&config.model) {
            return Verdict::Allowed(config.model);
        }
        if done >= best.0 {
            best = (done, Some(config.clone()));
        }
        stack.extend(config.next(history));
    }
    Verdict::Refused(tell(best))
}

/// Damages a history so that no store that keeps the contract could have it. False if this one has nothing to
/// damage.
pub fn damage(history: &mut History, way: usize, dice: &mut Dice) -> bool {
    let all = |is: &dyn Fn(&Call) -> bool| -> Vec<(usize, usize)> {
        let places = history.iter().enumerate().flat_map(|(h, calls)| (0..calls.len()).map(move |n| (h, n)));
        places.filter(|(h, n)| is(&history[*h][*n])).collect()
    };
    let added = all(&|c| matches!((&c.gesture, &c.answer), (Gesture::Add { .. }, Answer::Number(_))));
    let number = |(h, n): (usize, usize), history: &History| history[h][n].answer.clone();
    if added.is_empty() {
        return false;
    }
    let (one, other) = (*dice.pick(&added), *dice.pick(&added));
    match way {
        // Two numbers are swapped; a number is given twice.
        0 | 1 => {
            let (a, b) = (number(one, history), number(other, history));
            history[one.0][one.1].answer = b.clone();
            if way == 0 {
                history[other.0][other.1].answer = a.clone();
            }
            a != b
        }
        // An acknowledged upload is lost: nobody made it.
        2 => {
            history[one.0].remove(one.1);
            true
        }
        // An upload that was refused.
        3 => {
            history[one.0][one.1].answer = Answer::Refused(libc::ENOENT);
            true
        }
        // A read from the future: of a version whose upload began when the read was over.
        4 => {
            let reads = all(&|c| matches!(c.answer, Answer::Mark(_)));
            if reads.is_empty() {
                return false;
            }
            let read = *dice.pick(&reads);
            let Gesture::Add { mark, .. } = history[one.0][one.1].gesture else {
                unreachable!("one that adds")
            };
            let later = history[one.0][one.1].begin > history[read.0][read.1].end;
            history[read.0][read.1].answer = Answer::Mark(mark);
            later
        }
        // A list that misses what was there, or has what was not.
        _ => {
            let lists = all(&|c| matches!(c.answer, Answer::Numbers(_)));
            if lists.is_empty() {
                return false;
            }
            let list = *dice.pick(&lists);
            let Answer::Numbers(numbers) = &mut history[list.0][list.1].answer else {
                unreachable!("a list")
            };
            // Of an empty list, too: one number might be right.
            numbers.push(numbers.last().map_or(1000, |n| n + 1000));
            true
        }
    }
}
