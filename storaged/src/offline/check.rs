//! `check`: verifies a volume part by part, each only if those that it rests on are sound.

use std::{path::Path, time::Instant};

use tandem_proto::position::Position;

use super::{
    CheckArgs, EXIT_DAMAGED, EXIT_REPAIRED, OfflineError, log_check, repair,
    report::{Part, Report},
    say, tree_check,
};
use crate::{
    catalog::Catalog,
    index::{self, CatalogFiles},
    ingest::receiver::Durable,
    log::{LogError, LogPos, disk::DirDisk, image::Image},
    volume::{
        core::{Core, OpenError},
        state::{STATE_FILE, State, StateError},
        volumes::parts,
    },
};

/// What repair needs to know of a volume.
pub struct Assessment {
    /// What was found.
    pub report: Report,
    /// The file `state`, if it could be read.
    pub state: Option<State>,
    /// Where writing stood at the end of what can be read of the log.
    pub durable: Durable,
    /// The log as it is, if its directory can be read.
    pub image: Option<Image<DirDisk>>,
    /// The records that are needed follow each other.
    pub records_fit: bool,
    /// Position of the catalog's last checkpoint.
    pub catalog_position: Position,
}

/// Checks one volume, repairs it if asked and if needed, and says what was found.
pub fn check(name: &str, directory: &Path, args: &CheckArgs) -> Result<u8, OfflineError> {
    let mut report = check_volume(name, directory, args.read_files)?;
    let mut code = if report.report.is_sound() { 0 } else { EXIT_DAMAGED };
    if !report.report.is_sound() && args.repair {
        repair::repair(directory, &mut report)?;
        code = EXIT_REPAIRED;
    }
    if args.accept && code != EXIT_DAMAGED {
        repair::accept(directory, &mut report.report)?;
    }
    let text = if args.json {
        // Plain strings and numbers serialize.
        serde_json::to_string(&report.report).unwrap_or_default() + "\n"
    } else {
        report.report.text()
    };
    say(&text);
    Ok(code)
}

/// Looks at everything. A volume whose log is whole is brought to its end, as a start would do.
pub fn check_volume(name: &str, directory: &Path, read_files: bool) -> Result<Assessment, OfflineError> {
    let mut found = Assessment {
        report: Report::new(name, directory),
        state: None,
        durable: Durable { empty: true, ..Durable::default() },
        image: None,
        records_fit: false,
        catalog_position: Position::default(),
    };
    found.look_at_state(directory)?;
    found.look_at_log(directory)?;
    found.look_at_catalog(directory)?;
    if found.report.is_sound() {
        found.look_at_all(directory, read_files)?;
    }
    if let Some(why) = found.state.as_ref().and_then(|state| state.unproven.clone()) {
        found.report.note(Part::State, why);
    }
    Ok(found)
}

impl Assessment {
    fn look_at_state(&mut self, directory: &Path) -> Result<(), OfflineError> {
        let path = directory.join(STATE_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => match State::decode(&bytes) {
                Ok(state) => {
                    self.durable = state.durable.clone();
                    self.state = Some(state);
                }
                // Not damage: repairing it would destroy what a newer version can read.
                Err(error @ StateError::Version { .. }) => return Err(OpenError::from(error).into()),
                Err(StateError::Damaged(problem)) => self.report.damage(Part::State, problem),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.report.damage(Part::State, "the file is missing");
            }
            Err(error) => return Err(OfflineError::io("cannot read", &path)(error)),
        }
        Ok(())
    }

    fn look_at_log(&mut self, directory: &Path) -> Result<(), OfflineError> {
        let path = directory.join("log");
        if !path.is_dir() {
            self.report.damage(Part::Log, "its directory is missing");
            return Ok(());
        }
        let disk = DirDisk::open_or_create(&path).map_err(OfflineError::io("cannot open", &path))?;
        let (start, end) = self.state.as_ref().map_or((None, LogPos::default()), |s| (Some(s.log_start), s.log_end));
        let image = match Image::read(disk, start, end) {
            Ok(image) => image,
            Err(LogError::Io { what, name, source }) => {
                self.report.damage(Part::Log, format!("{what} {name}: {source}"));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        for problem in &image.harmless {
            let what = format!("{}: {}; nothing of it is needed any more", problem.at, problem.problem);
            self.report.damage(Part::Log, what);
        }
        if let Some(damage) = &image.damage {
            self.report.damage(Part::Log, format!("{}: {}", damage.at, damage.problem));
        }
        let mut problems = Vec::new();
        log_check::follow(&image, &mut self.durable, &mut |problem| problems.push(problem));
        self.records_fit = image.damage.is_none() && problems.is_empty();
        problems.into_iter().for_each(|problem| self.report.damage(Part::Log, problem));
        self.image = Some(image);
        Ok(())
    }

    fn look_at_catalog(&mut self, directory: &Path) -> Result<(), OfflineError> {
        let path = directory.join("catalog");
        if !Catalog::exists(&path) {
            self.report.damage(Part::Catalog, "it is missing");
            return Ok(());
        }
        if let Err(error) = Catalog::check_store(&path) {
            self.report.damage(Part::Catalog, error.to_string());
            return Ok(());
        }
        let verified = Catalog::open(&path).and_then(|catalog| {
            let figures = catalog.verify(&mut |problem| self.report.damage(Part::Catalog, problem))?;
            Ok((figures, catalog.meta()?.position))
        });
        match verified {
            Ok((figures, position)) => {
                self.report.catalog = Some(figures);
                self.report.at(position);
                self.catalog_position = position;
            }
            Err(error) => self.report.damage(Part::Catalog, error.to_string()),
        }
        Ok(())
    }

    /// Brings the volume to the end of its log, and compares everything with everything.
    fn look_at_all(&mut self, directory: &Path, read_files: bool) -> Result<(), OfflineError> {
        let opened = parts(directory).and_then(|parts| Core::open(parts, Instant::now()));
        let mut core = match opened {
            Ok((core, _)) => core,
            Err(OpenError::Apply(error)) if error.is_retryable() => return Err(error.into()),
            Err(error @ (OpenError::Io { .. } | OpenError::Log(LogError::Io { .. }))) => return Err(error.into()),
            Err(error) => {
                self.report.damage(Part::Tree, error.to_string());
                return Ok(());
            }
        };
        let reader = core.replica().reader();
        let applied = reader.applied();
        self.report.at(applied);
        let report = &mut self.report;
        let figures = reader.catalog().verify(&mut |problem| report.damage(Part::Catalog, problem))?;
        report.catalog = Some(figures);
        let compared = tree_check::compare(reader.tree(), reader.catalog(), &mut |problem| {
            report.damage(Part::Tree, problem);
        });
        match compared {
            Ok(compared) => {
                report.names_compared = compared.names;
                if compared.directories != figures.directories && !report.is_damaged(Part::Tree) {
                    report.damage(Part::Catalog, "some of its directories cannot be reached from the root");
                }
            }
            Err(error) => report.damage(Part::Tree, error.to_string()),
        }
        let files = CatalogFiles::new(reader.clone());
        let looked =
            index::verify(&directory.join("index"), &files, applied, read_files, &mut |finding| match finding {
                index::IndexFinding::Stale(what) => report.note(Part::Index, what),
                index::IndexFinding::Changed(what) => report.damage(Part::Tree, what),
            });
        match looked {
            Ok(files) => report.files_read = files,
            Err(error) => report.note(Part::Index, format!("{error}; it is rebuilt when storaged serves")),
        }
        core.stop(Instant::now());
        Ok(())
    }
}
