//! The current time; times and durations as text.

use serde_json::Value;

/// A time as RFC 3339 in UTC.
pub fn time(nanoseconds: i64) -> Value {
    time_text(nanoseconds).into()
}

pub fn time_text(nanoseconds: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(nanoseconds))
        .map_or_else(|_| "unknown".into(), |t| t.to_string())
}

/// The forms that `parse_time` accepts, for error messages.
pub const TIMES: &str = "is a day (2027-01-31: to its end, UTC), a time (2027-01-31 10:00, 2027-01-31T10:00:00Z), a while from \
    now on (+2 weeks, +12 hours) or seconds since 1970 (1801526400)";

/// Reads a time, and returns nanoseconds since 1970. The forms are: RFC 3339; a date, which means its
/// last moment in UTC; a date and a time in UTC; a time from now on, `+2 weeks`; seconds since 1970,
/// `@1801526400`. From nine digits on, the `@` may be left out.
pub fn parse_time(text: &str) -> Option<i64> {
    let text = text.trim();
    let at = match text.parse::<jiff::Timestamp>() {
        Ok(at) => at,
        Err(_) => parse_loose_time(text)?,
    };
    i64::try_from(at.as_nanosecond()).ok()
}

fn parse_loose_time(text: &str) -> Option<jiff::Timestamp> {
    use jiff::civil::{Date, DateTime, Time};
    if let Some(span) = text.strip_prefix('+') {
        return from_now(span.trim());
    }
    let digits = text.strip_prefix('@').unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        // 20270131 could be meant as a day.
        let clear = digits.len() < text.len() || digits.len() >= 9;
        return clear
            .then(|| digits.parse().ok())
            .flatten()
            .and_then(|n| jiff::Timestamp::from_second(n).ok());
    }
    let civil = match text.contains(':') {
        true => text.parse::<DateTime>().ok()?,
        false => text.parse::<Date>().ok()?.to_datetime(Time::MAX),
    };
    civil.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// `2 weeks`, `12h`.
fn from_now(text: &str) -> Option<jiff::Timestamp> {
    use jiff::Span;
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let n: i64 = text[..text.len() - unit.len()].parse().ok()?;
    let span = match unit.trim() {
        "second" | "seconds" | "sec" | "s" => Span::new().try_seconds(n),
        "minute" | "minutes" | "min" => Span::new().try_minutes(n),
        "hour" | "hours" | "h" => Span::new().try_hours(n),
        "day" | "days" | "d" => Span::new().try_days(n),
        "week" | "weeks" | "w" => Span::new().try_weeks(n),
        "month" | "months" => Span::new().try_months(n),
        "year" | "years" | "y" => Span::new().try_years(n),
        _ => return None,
    };
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    now.checked_add(span.ok()?).ok().map(|zoned| zoned.timestamp())
}

/// Reads `90`, `90s`, `30m`, `24h`, `7d`. Returns seconds.
pub fn duration(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// A duration as text, in the largest unit that fits exactly.
pub fn duration_text(seconds: u64) -> String {
    // One day is more often written as 24 hours.
    let units = [(86400, "d"), (3600, "h"), (60, "m")];
    let whole = units
        .into_iter()
        .find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit) && seconds != 86400);
    match whole {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None if seconds == 86400 => "24h".into(),
        None if seconds == 0 => "0".into(),
        None => format!("{seconds}s"),
    }
}

/// The current time in nanoseconds since 1970.
pub fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_understood_as_they_are_written() {
        for (text, shown) in [
            ("2027-01-31", "2027-01-31T23:59:59.999999999Z"),
            ("2027-01-31 10:00", "2027-01-31T10:00:00Z"),
            ("2027-01-31 10:00:30", "2027-01-31T10:00:30Z"),
            ("2027-01-31T10:00", "2027-01-31T10:00:00Z"),
            ("2027-01-31T10:00:00+02:00", "2027-01-31T08:00:00Z"),
            ("2027-01-31T23:59:59.999999999Z", "2027-01-31T23:59:59.999999999Z"),
            ("1801526400", "2027-02-02T00:00:00Z"),
            ("@1801526400", "2027-02-02T00:00:00Z"),
            ("@0", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(parse_time(text).map(time_text).as_deref(), Some(shown), "{text}");
        }
        for (text, days) in [
            ("+2 weeks", 14),
            ("+1 day", 1),
            ("+36hours", 1),
            ("+3d", 3),
            ("+ 90 minutes", 0),
            ("+1 month", 28),
        ] {
            let ahead = parse_time(text).map_or(0, |at| at - now()) / 86_400_000_000_000 + 1;
            assert!((days..=days + 4).contains(&ahead), "{text}: {ahead}");
        }
        for text in [
            "soon",
            "",
            "+",
            "+2",
            "+2 moons",
            "20270131",
            "5",
            "31.01.2027",
            "2027-02-30",
            "10:00",
            "@",
            "+99999999999 years",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }
}
