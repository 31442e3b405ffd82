//! `tandem-storaged`: parses flags, starts the log, runs the server or an offline command. Exit codes: 0
//! stopped or done, 1 failed, 64 wrong usage; those of the offline commands are in [`tandem_storaged::offline`].

use std::{io::Write as _, process::ExitCode};

use tandem_runtime::{priority, settings, telemetry};
use tandem_storaged::{
    config::{Arguments, BadArguments},
    offline, sandbox, server,
};

/// Wrong usage, as in sysexits.h.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    priority::keep_the_way_back();
    let mut arguments = match Arguments::of_process() {
        Ok(arguments) => arguments,
        Err(BadArguments::Config(error)) => return fail(&error.to_string(), EXIT_USAGE),
        Err(BadArguments::Clap(error)) => {
            // Help and version are errors to clap and none to people.
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let command = arguments.command.take();
    let (config, shown) = match arguments.settings() {
        Ok(settings) => settings,
        Err(error) => return fail(&error.to_string(), EXIT_USAGE),
    };
    if arguments.check {
        // Who closed standard output does not want to hear.
        let _ = std::io::stdout().write_all(settings::table(&shown).as_bytes());
        return ExitCode::SUCCESS;
    }
    if let Err(error) = telemetry::start(&config.log()) {
        return fail(&error, EXIT_USAGE);
    }
    if let Some(command) = command {
        return match offline::run(&config.data, &command) {
            Ok(code) => ExitCode::from(code),
            Err(error) => fail(&error.to_string(), 1),
        };
    }
    match sandbox::enter(&config, arguments.file().map(|file| file.as_path())) {
        Ok(true) => tracing::info!("shut out of everything but its own directories (Landlock)"),
        Ok(false) => {}
        Err(error) => return fail(&error.to_string(), 1),
    }
    priority::begin();
    // Half the processors: each worker that stands idle is woken by every message that another one takes, and volumes work too.
    let workers =
        std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, NETWORK_THREADS_MAX));
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start threads: {error}"), 1),
    };
    match runtime.block_on(server::run(config, arguments, shown)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string(), 1),
    }
}

/// Tasks that a worker runs before it looks at its sockets again. Beside one stream of bulk data it would else do so every 61 tasks, which is 10 ms.
const EVENT_INTERVAL: u32 = 4;
/// Threads that serve the network; the volumes' own threads do the rest.
const NETWORK_THREADS_MAX: usize = 8;

fn fail(message: &str, code: u8) -> ExitCode {
    eprintln!("tandem-storaged: {message}");
    ExitCode::from(code)
}
