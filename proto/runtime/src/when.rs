//! Points in time as people read them. For messages only: nothing is decided by them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix time in nanoseconds; 0 before 1970.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// `2026-11-21 05:17:49 UTC`; `at an unknown time` for what nobody noted.
pub fn utc(unix_ns: i64) -> String {
    if unix_ns <= 0 {
        return "at an unknown time".to_owned();
    }
    let seconds = unix_ns / 1_000_000_000;
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// Days since 1970 as a date of the proleptic Gregorian calendar. Years are counted from March, so that the leap day is the last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn leap_days_and_ends_of_years_are_right() {
        let at = |seconds: i64| utc(seconds * 1_000_000_000);
        assert_eq!(at(1), "1970-01-01 00:00:01 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(at(1_735_689_599), "2024-12-31 23:59:59 UTC");
        assert_eq!(at(1_735_689_600), "2025-01-01 00:00:00 UTC");
        assert_eq!(at(1_795_238_269), "2026-11-21 05:17:49 UTC");
        assert_eq!(utc(0), "at an unknown time");
    }
}
