//! What the administrator of a storage daemon says about one volume: the file `settings` in its directory. A volume without one has no
//! quota and keeps special files.

use std::{fmt::Write as _, fs, io, path::Path};

use tandem_runtime::durable;

const FILE: &str = "settings";
const HEADER: &str = "tandem volume settings 1";

/// What becomes of devices and of set-user-id and set-group-id bits and capabilities of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Special {
    /// They are in the tree, which only its owner can enter.
    #[default]
    Keep,
    /// They are in the catalog only: a device is an empty file in the tree, and no file there gives rights. Copies are complete.
    Deny,
}

impl Special {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Special::Keep => "keep",
            Special::Deny => "deny",
        }
    }

    /// The reverse.
    pub fn parse(text: &str) -> Option<Special> {
        [Special::Keep, Special::Deny].into_iter().find(|special| special.as_str() == text)
    }
}

/// Of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    /// Bytes that it may hold; `None`: no bound.
    pub quota: Option<u64>,
    /// See there.
    pub special: Special,
}

impl Settings {
    /// Reads those of a volume.
    pub fn load(volume: &Path) -> io::Result<Settings> {
        match fs::read_to_string(volume.join(FILE)) {
            Ok(text) => Settings::parse(&text).map_err(|why| {
                let path = volume.join(FILE);
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}; mend or remove it", path.display()))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Settings::default()),
            Err(error) => Err(error),
        }
    }

    /// Writes them, durably and as a whole.
    pub fn store(&self, volume: &Path) -> io::Result<()> {
        durable::replace_file_durably(&volume.join(FILE), self.text().as_bytes())
    }

    fn text(&self) -> String {
        let mut text = format!("{HEADER}\nspecial={}\n", self.special.as_str());
        if let Some(quota) = self.quota {
            // Writing to a string does not fail.
            let _ = writeln!(text, "quota={quota}");
        }
        text
    }

    fn parse(text: &str) -> Result<Settings, String> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err("another version wrote it, or it is damaged".to_owned());
        }
        let mut settings = Settings::default();
        for line in lines.filter(|line| !line.trim().is_empty()) {
            match line.split_once('=') {
                Some(("quota", bytes)) => settings.quota = Some(bytes.parse().map_err(|_| format!("{line:?}"))?),
                Some(("special", word)) => settings.special = Special::parse(word).ok_or(format!("{line:?}"))?,
                _ => return Err(format!("{line:?} is not known")),
            }
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::{Settings, Special};

    #[test]
    fn settings_read_back_and_what_is_not_understood_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(Settings::load(dir.path()).expect("none"), Settings::default());
        for settings in [
            Settings { quota: Some(5 << 30), special: Special::Deny },
            Settings { quota: None, special: Special::Keep },
        ] {
            settings.store(dir.path()).expect("stored");
            assert_eq!(Settings::load(dir.path()).expect("readable"), settings);
        }
        for wrong in [
            "",
            "tandem volume settings 2\n",
            "tandem volume settings 1\nquota=much\n",
            "tandem volume settings 1\nx=1\n",
        ] {
            std::fs::write(dir.path().join("settings"), wrong).expect("written");
            assert!(Settings::load(dir.path()).is_err(), "{wrong:?}");
        }
    }
}
