//! Writes what each target begins with to `DIR/TARGET/`.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "corpus".to_owned());
    for target in tandem_tests::fuzz::TARGETS {
        let dir = Path::new(&dir).join(target.name);
        fs::create_dir_all(&dir)?;
        for (at, seed) in (target.seeds)().into_iter().enumerate() {
            fs::write(dir.join(format!("seed-{at}")), seed)?;
        }
    }
    Ok(())
}
