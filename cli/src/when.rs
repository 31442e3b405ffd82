//! Times as people write and read them: an age (`1h`), a local date and time, or a local time of today.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970, now.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn local(seconds: i64) -> libc::tm {
    // SAFETY: an all-zero tm is valid, and both pointers are to live objects.
    unsafe {
        let mut broken_down: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const seconds, &raw mut broken_down);
        broken_down
    }
}

/// Local date and time.
pub fn shown(ns: i64) -> String {
    let tm = local(ns.div_euclid(1_000_000_000));
    let (year, month) = (tm.tm_year + 1900, tm.tm_mon + 1);
    format!("{year:04}-{month:02}-{:02} {:02}:{:02}:{:02}", tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec)
}

/// Reads a time, in nanoseconds since 1970.
pub fn parse(text: &str) -> Result<i64, String> {
    let bad = || format!("{text:?} is no time: write an age (30s, 10min, 1h, 7d), \"2026-11-21 14:30\" or 14:30");
    if let Some(seconds) = age(text) {
        return Ok(now_ns().saturating_sub(seconds.saturating_mul(1_000_000_000)));
    }
    let (date, time) = match text.split_once([' ', 'T']) {
        Some((date, time)) => (Some(date), Some(time)),
        None if text.contains('-') => (Some(text), None),
        None => (None, Some(text)),
    };
    let mut tm = local(now_ns() / 1_000_000_000);
    if let Some(date) = date {
        let parts = numbers(date, '-').filter(|parts| parts.len() == 3).ok_or_else(bad)?;
        let in_range = (1970..9999).contains(&parts[0]) && (1..=12).contains(&parts[1]) && (1..=31).contains(&parts[2]);
        if !in_range {
            return Err(bad());
        }
        (tm.tm_year, tm.tm_mon, tm.tm_mday) = (parts[0] - 1900, parts[1] - 1, parts[2]);
    }
    (tm.tm_hour, tm.tm_min, tm.tm_sec) = match time.map(|time| numbers(time, ':')) {
        None => (0, 0, 0),
        Some(Some(parts)) if parts.len() == 2 || parts.len() == 3 => {
            (parts[0], parts[1], parts.get(2).copied().unwrap_or(0))
        }
        Some(_) => return Err(bad()),
    };
    if !((0..24).contains(&tm.tm_hour) && (0..60).contains(&tm.tm_min) && (0..=60).contains(&tm.tm_sec)) {
        return Err(bad());
    }
    tm.tm_isdst = -1;
    // SAFETY: the pointer is to a live object.
    let seconds = unsafe { libc::mktime(&raw mut tm) };
    Ok(seconds.saturating_mul(1_000_000_000))
}

fn numbers(text: &str, separator: char) -> Option<Vec<i32>> {
    text.split(separator).map(|part| part.parse().ok()).collect()
}

/// An age in seconds.
fn age(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: i64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::{age, parse, shown};

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!((age("90s"), age("10min"), age("2h"), age("7d")), (Some(90), Some(600), Some(7200), Some(604_800)));
        let at = parse("2026-11-21 14:30:05").expect("a time");
        assert_eq!(shown(at), "2026-11-21 14:30:05");
        assert_eq!(shown(parse("2026-11-21").expect("a date")), "2026-11-21 00:00:00");
        assert!(shown(parse("00:00").expect("a time of today")).ends_with("00:00:00"));
        for bad in ["", "yesterday", "25:00", "2026-13-01", "1x", "12", "1:2:3:4"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
