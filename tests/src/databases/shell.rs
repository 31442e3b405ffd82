//! A conversation with a database through its own command-line client: statements in, lines out.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// A client that runs and is connected.
#[derive(Debug)]
pub struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    errors: PathBuf,
    asked: u64,
}

/// What the client prints at the end of each answer.
const END: &str = "--end-of-answer--";

impl Shell {
    /// Starts a client. What it says on standard error goes to the file `errors`, and into the message of a failure.
    pub fn start(program: &str, args: &[&str], errors: &Path) -> Result<Shell, String> {
        // Line by line: the clients would keep what they print until a block of it is full.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", program]).args(args);
        let failed = |error: std::io::Error| format!("{program} cannot be started: {error}");
        let file = File::create(errors).map_err(failed)?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file).spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("{program} has no pipes"));
        };
        Ok(Shell { child, input, output: BufReader::new(output), errors: errors.to_owned(), asked: 0 })
    }

    /// Runs statements, and returns the lines that they printed. The client ends at the first error.
    pub fn ask(&mut self, statements: &str) -> Result<Vec<String>, String> {
        self.asked += 1;
        let end = format!("{END}{}", self.asked);
        let sent = writeln!(self.input, "{statements}\nSELECT '{end}';").and_then(|()| self.input.flush());
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match self.output.read_line(&mut line) {
                Ok(read) if read > 0 && sent.is_ok() => {}
                _ => {
                    let said = fs::read_to_string(&self.errors).unwrap_or_default();
                    return Err(format!("the database's client ended: {}", said.trim()));
                }
            }
            let line = line.trim_end_matches('\n');
            if line == end {
                return Ok(lines);
            }
            lines.push(line.to_owned());
        }
    }

    /// [`Self::ask`] for one number.
    pub fn number(&mut self, statement: &str) -> Result<i64, String> {
        let lines = self.ask(statement)?;
        let number = lines.first().and_then(|line| line.trim().parse().ok());
        number.ok_or_else(|| format!("{statement} answers {lines:?}, which is no number"))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
