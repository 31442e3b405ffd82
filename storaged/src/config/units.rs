//! Sizes and ages as people write them: `10GiB`, `64MiB`, `30d`.

use std::time::Duration;

const SIZES: [(&str, u64); 11] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
    ("KB", 1 << 10),
    ("MB", 1 << 20),
    ("B", 1),
];
const AGES: [(&str, u64); 5] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("w", 7 * 86_400)];

fn scaled(text: &str, units: &[(&str, u64)], same: fn(&str, &str) -> bool) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| same(name, unit.trim()))?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// `64MiB`, `1G`, `4096`.
pub fn bytes(text: &str) -> Option<u64> {
    text.parse().ok().or_else(|| scaled(text, &SIZES, str::eq_ignore_ascii_case))
}

/// `90s`, `12h`, `30d`; small letters only, so that `1M` is a size.
pub fn age(text: &str) -> Option<Duration> {
    scaled(text, &AGES, |name, unit| name == unit).map(Duration::from_secs)
}

/// An age in its largest whole unit.
pub fn shown_age(age: Duration) -> String {
    let seconds = age.as_secs();
    let unit = AGES
        .iter()
        .rev()
        .filter(|(name, _)| *name != "w")
        .find(|(_, unit)| seconds > 0 && seconds.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{seconds}s"), |(name, unit)| format!("{}{name}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{age, bytes};

    #[test]
    fn sizes_and_ages_are_read_as_people_write_them() {
        assert_eq!(bytes("4096"), Some(4096));
        assert_eq!(bytes("10GiB"), Some(10 << 30));
        assert_eq!(bytes("10 gib"), Some(10 << 30));
        assert_eq!(bytes("1m"), Some(1 << 20));
        assert_eq!(age("30d"), Some(Duration::from_secs(30 * 86_400)));
        for wrong in ["", "GiB", "-1", "1.5GiB", "99999999999TiB", "7x"] {
            assert_eq!((bytes(wrong), age(wrong)), (None, None), "{wrong}");
        }
        assert_eq!(age("30"), None, "an age needs its unit");
    }
}
