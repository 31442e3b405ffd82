//! The load and its checks, in SQL that PostgreSQL and SQLite both understand: transfers between accounts, each noted in two more tables.

use crate::{databases::shell::Shell, rng::Rng};

/// Accounts; their balances start with 0, and the sum of all stays 0.
const ACCOUNTS: u64 = 64;

/// Makes the tables.
pub fn create() -> String {
    let accounts: Vec<String> = (0..ACCOUNTS).map(|id| format!("({id},0)")).collect();
    format!(
        "CREATE TABLE accounts(id bigint PRIMARY KEY, balance bigint NOT NULL);
         CREATE TABLE journal(worker bigint, n bigint, src bigint, dst bigint, amount bigint, note text, PRIMARY KEY(worker, n));
         CREATE INDEX journal_note ON journal(note);
         CREATE TABLE audit(worker bigint, n bigint, PRIMARY KEY(worker, n));
         CREATE TABLE scratch(k bigint PRIMARY KEY, note text);
         INSERT INTO accounts VALUES {};",
        accounts.join(",")
    )
}

/// One transfer as one transaction. It touches what it noted in several places, so a torn one shows.
pub fn transfer(begin: &str, worker: usize, n: u64, rng: &mut Rng) -> String {
    let (one, other) = (rng.below(ACCOUNTS), rng.below(ACCOUNTS));
    let amount = rng.below(1000) as i64;
    // In the order of their ids, so that two transfers never wait for each other.
    let (low, high) = (one.min(other), one.max(other));
    let sign = if low == one { -amount } else { amount };
    let note = format!("{:x}", rng.bits()).repeat(1 + rng.index(60));
    let (fresh, old) = (worker as u64 * 1000 + rng.below(500), worker as u64 * 1000 + rng.below(500));
    format!(
        "{begin};
         UPDATE accounts SET balance = balance + ({sign}) WHERE id = {low};
         UPDATE accounts SET balance = balance - ({sign}) WHERE id = {high};
         INSERT INTO journal VALUES ({worker},{n},{one},{other},{amount},'{note}');
         INSERT INTO scratch VALUES ({fresh},'{note}') ON CONFLICT (k) DO UPDATE SET note = excluded.note;
         DELETE FROM scratch WHERE k = {old};
         INSERT INTO audit VALUES ({worker},{n});
         COMMIT;"
    )
}

/// Checks that every transaction is there as a whole or not at all; how many commits of each worker are there.
pub fn check(shell: &mut Shell, workers: usize) -> Result<Vec<u64>, String> {
    let mut none = |what: &str, statement: &str| match shell.number(statement)? {
        0 => Ok(()),
        wrong => Err(format!("{wrong} {what}")),
    };
    none("is the sum of all balances, and not 0", "SELECT coalesce(sum(balance),0) FROM accounts;")?;
    none(
        "accounts have another balance than their transfers",
        "SELECT count(*) FROM accounts a WHERE balance <>
           coalesce((SELECT sum(amount) FROM journal WHERE dst = a.id),0) - coalesce((SELECT sum(amount) FROM journal WHERE src = a.id),0);",
    )?;
    none(
        "commits are noted in one place and not in the other",
        "SELECT (SELECT count(*) FROM journal j WHERE NOT EXISTS (SELECT 1 FROM audit a WHERE a.worker = j.worker AND a.n = j.n))
              + (SELECT count(*) FROM audit a WHERE NOT EXISTS (SELECT 1 FROM journal j WHERE a.worker = j.worker AND a.n = j.n));",
    )?;
    (0..workers)
        .map(|worker| {
            let count = shell.number(&format!("SELECT count(*) FROM audit WHERE worker = {worker};"))?;
            let last = shell.number(&format!("SELECT coalesce(max(n),0) FROM audit WHERE worker = {worker};"))?;
            if count != last {
                return Err(format!("worker {worker} committed up to {last}, and {count} commits of it are there"));
            }
            u64::try_from(count).map_err(|error| error.to_string())
        })
        .collect()
}
