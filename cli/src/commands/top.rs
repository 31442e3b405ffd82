//! `tandem top`: the mounts of this host, live, in the terminal.
//!
//! One task a mount follows its daemon and sends what it says; the only owner of the screen draws at each of these and at each key.
//! What is drawn is a function of [`Screen`], so that a test, and `--once`, can look at it without a terminal.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use ratatui::{
    Frame, Terminal,
    backend::TestBackend,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Paragraph, Row, Sparkline, Table, TableState, Wrap},
};
use tandem_proto::{figures, pb};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    exit::{Exit, Failure},
    mounts::{Mount, select},
    output::say,
    render,
};

/// Points of a plot that are remembered: two minutes.
const POINTS_MAX: usize = 240;
const INTERVAL_MS: u32 = 500;
/// What waits to be drawn; a slow terminal gets the newest.
const WAITING_MAX: usize = 16;
/// How long keys are waited for at a time.
const KEY_POLL: Duration = Duration::from_millis(200);
/// Size of what `--once` prints.
const ONCE: (u16, u16) = (100, 32);

/// Options of `tandem top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Keys: up and down choose a mount, q ends.

Examples:
  tandem top                                     all mounts of this user
  tandem top ~/work                              one")]
pub struct Args {
    /// Prints one picture, after a second, instead of taking the terminal.
    #[arg(long)]
    once: bool,
    /// Mountpoints, or paths on them; default: all mounts of this user.
    #[arg(value_name = "MOUNT")]
    mounts: Vec<PathBuf>,
}

/// What is known of one mount.
struct Followed {
    mount: Mount,
    seen: Instant,
    before: pb::MountStatus,
    ops_per_s: f64,
    written_per_s: f64,
    sent_per_s: f64,
    sent: VecDeque<u64>,
    lag_ms: VecDeque<u64>,
    ended: bool,
}

fn push(points: &mut VecDeque<u64>, point: f64) {
    points.push_back(point.max(0.0) as u64);
    if points.len() > POINTS_MAX {
        points.pop_front();
    }
}

impl Followed {
    fn new(mount: Mount, now: Instant) -> Followed {
        let before = mount.status.clone();
        Followed {
            mount,
            seen: now,
            before,
            ops_per_s: 0.0,
            written_per_s: 0.0,
            sent_per_s: 0.0,
            sent: VecDeque::new(),
            lag_ms: VecDeque::new(),
            ended: false,
        }
    }

    fn take(&mut self, status: pb::MountStatus, now: Instant) {
        let seconds = now.saturating_duration_since(self.seen).as_secs_f64().max(0.05);
        self.before = std::mem::replace(&mut self.mount.status, status);
        let (now_is, before) = (&self.mount.status, &self.before);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        self.ops_per_s = rate(now_is.seq, before.seq);
        self.written_per_s = rate(now_is.written_bytes, before.written_bytes);
        self.sent_per_s = rate(now_is.sent_bytes, before.sent_bytes);
        push(&mut self.sent, self.sent_per_s);
        push(&mut self.lag_ms, now_is.lag_seconds * 1000.0);
        self.seen = now;
    }
}

/// Everything that is drawn.
struct Screen {
    mounts: Vec<Followed>,
    chosen: TableState,
}

impl Screen {
    fn new(mounts: Vec<Mount>, now: Instant) -> Screen {
        let mounts = mounts.into_iter().map(|mount| Followed::new(mount, now)).collect();
        Screen { mounts, chosen: TableState::default().with_selected(0) }
    }

    fn choose(&mut self, by: isize) {
        let at = self.chosen.selected().unwrap_or(0).saturating_add_signed(by);
        self.chosen.select(Some(at.min(self.mounts.len().saturating_sub(1))));
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let rows = u16::try_from(self.mounts.len()).unwrap_or(u16::MAX).min(8) + 1;
        let [head, table, rest] =
            Layout::vertical([Constraint::Length(1), Constraint::Length(rows), Constraint::Min(0)]).areas(frame.area());
        let title = format!("tandem top  {}   up/down choose  q ends", crate::when::shown(crate::when::now_ns()));
        frame.render_widget(Paragraph::new(title).style(Style::new().add_modifier(Modifier::BOLD)), head);
        self.draw_mounts(frame, table);
        if let Some(chosen) = self.mounts.get(self.chosen.selected().unwrap_or(0)) {
            draw_details(frame, rest, chosen);
        }
    }

    fn draw_mounts(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let rows = self.mounts.iter().map(|followed| {
            let status = &followed.mount.status;
            let state = if followed.ended { "ended" } else { status.state.as_str() };
            Row::new(vec![
                Span::raw(status.volume.clone()),
                Span::styled(state.to_owned(), Style::new().fg(colour(state))),
                Span::raw(status.ops_behind.to_string()),
                Span::raw(render::seconds(status.lag_seconds)),
                Span::raw(format!("{:.0}/s", followed.ops_per_s)),
                Span::raw(format!("{}/s", render::bytes(followed.sent_per_s as u64))),
                Span::raw(status.mountpoint.clone()),
            ])
        });
        let widths = [16, 12, 8, 9, 10, 14].map(Constraint::Length).into_iter().chain([Constraint::Min(10)]);
        let header = Row::new(["VOLUME", "STATE", "BEHIND", "LAG", "OPS", "SENT", "MOUNT"])
            .style(Style::new().add_modifier(Modifier::DIM));
        let highlight = Style::new().add_modifier(Modifier::REVERSED);
        let table = Table::new(rows, widths).header(header).row_highlight_style(highlight);
        frame.render_stateful_widget(table, area, &mut self.chosen);
    }
}

fn colour(state: &str) -> Color {
    match state {
        "live" => Color::Green,
        "initial" | "lagging" | "catching-up" | "paused" => Color::Yellow,
        _ => Color::Red,
    }
}

fn draw_details(frame: &mut Frame<'_>, area: Rect, followed: &Followed) {
    let [plots, why, tables] =
        Layout::vertical([Constraint::Length(7), Constraint::Length(3), Constraint::Min(0)]).areas(area);
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(plots);
    let most = followed.sent.iter().copied().max().unwrap_or(0);
    let title = format!(
        " to the replica {}/s, most {}/s; written {}/s ",
        render::bytes(followed.sent_per_s as u64),
        render::bytes(most),
        render::bytes(followed.written_per_s as u64)
    );
    plot(frame, left, title, &followed.sent, Color::Cyan);
    let most = followed.lag_ms.iter().copied().max().unwrap_or(0);
    let lag = render::seconds(followed.mount.status.lag_seconds);
    plot(frame, right, format!(" lag {lag}, most {most} ms "), &followed.lag_ms, Color::Magenta);
    frame.render_widget(Paragraph::new(notes(&followed.mount.status)).wrap(Wrap { trim: true }), why);
    let [calls, files] = Layout::horizontal([Constraint::Length(48), Constraint::Min(20)]).areas(tables);
    draw_calls(frame, calls, followed);
    draw_files(frame, files, &followed.mount.status);
}

fn plot(frame: &mut Frame<'_>, area: Rect, title: String, points: &VecDeque<u64>, colour: Color) {
    let width = usize::from(area.width.saturating_sub(2));
    let newest: Vec<u64> = points.iter().skip(points.len().saturating_sub(width)).copied().collect();
    let plot = Sparkline::default().data(&newest).style(Style::new().fg(colour));
    frame.render_widget(plot.block(Block::bordered().title(title)), area);
}

/// What is not in order, and where the bounds are.
fn notes(status: &pb::MountStatus) -> Vec<Line<'static>> {
    let window = format!(
        "window {} of {}, dirty {} cells, {} fsyncs wait, {} writes held back",
        render::bytes(status.window_bytes),
        render::bytes(status.window_limit_bytes),
        status.dirty_cells,
        status.waiting_fsyncs,
        status.held_writes
    );
    let mut lines = vec![Line::raw(window)];
    lines
        .extend(render::mount_notes(status).into_iter().map(|note| Line::styled(note, Style::new().fg(Color::Yellow))));
    if !status.last_error.is_empty() && status.last_error != status.reason {
        lines.push(Line::styled(format!("last error: {}", status.last_error), Style::new().fg(Color::Red)));
    }
    lines
}

fn draw_calls(frame: &mut Frame<'_>, area: Rect, followed: &Followed) {
    let rows = followed.mount.status.ops.iter().map(|op| {
        let before = followed.before.ops.iter().find(|before| before.op == op.op);
        let recent: Vec<u64> = match before {
            Some(before) => {
                op.buckets.iter().zip(&before.buckets).map(|(now, then)| now.saturating_sub(*then)).collect()
            }
            None => op.buckets.clone(),
        };
        // Where nothing happened lately, what is known of all the time says more than nothing.
        let shown = if recent.iter().sum::<u64>() > 0 { &recent } else { &op.buckets };
        let quantile = |q| micros(figures::quantile(shown, q));
        Row::new([op.op.clone(), op.count.to_string(), quantile(0.5), quantile(0.99)])
    });
    let widths = [10, 12, 10, 10].map(Constraint::Length);
    let header = Row::new(["CALL", "COUNT", "P50 <", "P99 <"]).style(Style::new().add_modifier(Modifier::DIM));
    frame.render_widget(Table::new(rows, widths).header(header).block(Block::bordered().title(" calls ")), area);
}

fn micros(seconds: f64) -> String {
    if seconds < 1e-3 { format!("{:.0} us", seconds * 1e6) } else { render::seconds(seconds) }
}

fn draw_files(frame: &mut Frame<'_>, area: Rect, status: &pb::MountStatus) {
    let rows = status.busy.iter().map(|file| Row::new([format!("{}/s", render::bytes(file.bytes)), file.path.clone()]));
    let table = Table::new(rows, [Constraint::Length(14), Constraint::Min(10)]);
    frame.render_widget(table.block(Block::bordered().title(" busiest files ")), area);
}

/// What one daemon said, or that it has ended.
struct Said {
    at: usize,
    status: Option<pb::MountStatus>,
}

async fn follow(at: usize, mount: Mount, out: mpsc::Sender<Said>) {
    let request = pb::WatchRequest { volume: mount.status.volume.clone(), interval_ms: INTERVAL_MS };
    if let Ok(reply) = mount.admin().watch(request).await {
        let mut stream = reply.into_inner();
        while let Ok(Some(reply)) = stream.message().await {
            for status in reply.mounts {
                if out.send(Said { at, status: Some(status) }).await.is_err() {
                    return;
                }
            }
        }
    }
    let _ = out.send(Said { at, status: None }).await;
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let found = select(&args.mounts).await?;
    if found.mounts.is_empty() {
        return Err(Failure::new(Exit::NoAnswer, "no daemon of a mount answers; see: tandem status"));
    }
    let (out, said) = mpsc::channel(WAITING_MAX);
    let mut followers = JoinSet::new();
    for (at, mount) in found.mounts.iter().enumerate() {
        followers.spawn(follow(at, mount.clone(), out.clone()));
    }
    drop(out);
    let screen = Screen::new(found.mounts, Instant::now());
    if args.once {
        return once(screen, said).await;
    }
    if !io::stdout().is_terminal() {
        return Err(Failure::new(Exit::Usage, "this is no terminal: use tandem top --once, or tandem watch --json"));
    }
    let mut terminal = ratatui::init();
    let ended = live(screen, said, &mut terminal).await;
    ratatui::restore();
    ended
}

async fn once(mut screen: Screen, mut said: mpsc::Receiver<Said>) -> Result<Exit, Failure> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
    while let Ok(Some(one)) = tokio::time::timeout_at(deadline, said.recv()).await {
        take(&mut screen, one);
    }
    say(&picture(&mut screen))?;
    Ok(Exit::InSync)
}

fn picture(screen: &mut Screen) -> String {
    let mut terminal = Terminal::new(TestBackend::new(ONCE.0, ONCE.1)).expect("memory does not fail");
    terminal.draw(|frame| screen.draw(frame)).expect("memory does not fail");
    let buffer = terminal.backend().buffer();
    let line = |row: u16| (0..ONCE.0).map(|column| buffer[(column, row)].symbol()).collect::<String>();
    (0..ONCE.1).map(|row| format!("{}\n", line(row).trim_end())).collect()
}

fn take(screen: &mut Screen, said: Said) {
    let Some(followed) = screen.mounts.get_mut(said.at) else { return };
    match said.status {
        Some(status) => followed.take(status, Instant::now()),
        None => followed.ended = true,
    }
}

async fn live(
    mut screen: Screen,
    mut said: mpsc::Receiver<Said>,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<Exit, Failure> {
    let (keys_out, mut keys) = mpsc::channel(WAITING_MAX);
    // A thread, because reading the terminal blocks; it ends with the channel.
    std::thread::spawn(move || {
        while !keys_out.is_closed() {
            if event::poll(KEY_POLL).unwrap_or(false)
                && let Ok(event) = event::read()
                && keys_out.blocking_send(event).is_err()
            {
                return;
            }
        }
    });
    let mut is_new = true;
    loop {
        if is_new {
            terminal.draw(|frame| screen.draw(frame)).map_err(Failure::from)?;
        }
        is_new = true;
        tokio::select! {
            one = said.recv() => match one {
                Some(one) => take(&mut screen, one),
                None => return Err(Failure::new(Exit::NoAnswer, "no daemon is left")),
            },
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind == KeyEventKind::Press => match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(Exit::InSync),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(Exit::InSync),
                    KeyCode::Up | KeyCode::Char('k') => screen.choose(-1),
                    KeyCode::Down | KeyCode::Char('j') => screen.choose(1),
                    // What something else than a person sends in a stream would be drawn as often as it comes.
                    _ => is_new = false,
                },
                _ => {}
            },
        }
    }
}
