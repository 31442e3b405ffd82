//! Who may read the page.
//!
//! ```text
//!  on loopback   asked for by a name of this machine? ─no─► refused (a foreign page whose name was made to mean 127.0.0.1: DNS rebinding)
//!                └yes─► the metrics? ─yes─► all ─no─► root, or whose daemon it is? ─yes─► all ─no─► the token?
//!  off loopback  the token?
//! ```
//! The token is sent as `Authorization: Bearer`, as a cookie, or once in the address. Metrics have no names of files in them.

use std::net::{IpAddr, SocketAddr};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header},
};
use tandem_runtime::secret;

use crate::METRICS;

const COOKIE: &str = "tandem_token";

/// The rule of one socket.
pub struct Guard {
    loopback: bool,
    token: String,
    /// Whose daemon it is.
    user: u32,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is answered.
    Pass,
    /// The token was in the address: it becomes a cookie, and goes from the address.
    Remember(HeaderValue),
    /// It is not.
    Refuse(StatusCode, &'static str),
}

fn is_local_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

impl Guard {
    /// For a socket of a user's daemon.
    pub fn new(address: SocketAddr, token: String, user: u32) -> Guard {
        Guard { loopback: address.ip().is_loopback(), token, user }
    }

    /// Whether it matters who asks.
    pub fn asks_who(&self) -> bool {
        self.loopback
    }

    /// Decides about a request. `who`: the user who asks, as far as that is known.
    pub fn admit(&self, request: &Request<Body>, who: Option<u32>) -> Verdict {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Verdict::Refuse(StatusCode::METHOD_NOT_ALLOWED, "this page only tells\n");
        }
        if self.loopback && !is_local_name(text(request.headers(), header::HOST)) {
            return Verdict::Refuse(StatusCode::FORBIDDEN, "ask for localhost\n");
        }
        let is_for_all = request.uri().path() == METRICS;
        if self.loopback && (is_for_all || who.is_some_and(|who| who == 0 || who == self.user)) {
            return Verdict::Pass;
        }
        let token = &self.token;
        let is_it = |sent: &str| secret::equal(sent, token);
        let bearer = text(request.headers(), header::AUTHORIZATION).strip_prefix("Bearer ");
        let mut cookies =
            text(request.headers(), header::COOKIE).split(';').filter_map(|pair| pair.trim().split_once('='));
        if bearer.is_some_and(is_it) || cookies.any(|(name, value)| name == COOKIE && is_it(value)) {
            return Verdict::Pass;
        }
        let query = request.uri().query().unwrap_or_default();
        let asked = query.split('&').find_map(|pair| pair.strip_prefix("token="));
        if asked.is_some_and(is_it)
            && let Ok(cookie) = HeaderValue::from_str(&format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"))
        {
            return Verdict::Remember(cookie);
        }
        let why = "This page is for root, for the user whose daemon it is, and for who has its token.\n\
                   The token is in the file web-PORT.token of the daemon's runtime directory: ask for /?token=TOKEN\n";
        Verdict::Refuse(StatusCode::UNAUTHORIZED, why)
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};

    use super::{Guard, Verdict};

    const USER: u32 = 1000;

    fn guard(address: &str) -> Guard {
        Guard::new(address.parse().expect("an address"), "secret".to_owned(), USER)
    }

    fn ask(guard: &Guard, who: Option<u32>, uri: &str, headers: &[(&str, &str)]) -> Verdict {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guard.admit(&request.body(Body::empty()).expect("a request"), who)
    }

    #[test]
    fn on_loopback_only_names_of_this_machine_are_answered() {
        let guard = guard("127.0.0.1:7450");
        for host in ["localhost:7450", "127.0.0.1:7450", "[::1]:7450", "LOCALHOST"] {
            assert_eq!(ask(&guard, Some(USER), "/", &[("host", host)]), Verdict::Pass, "{host}");
        }
        for host in ["evil.example:7450", "127.0.0.1.evil.example", "", "localhost.evil.example"] {
            assert!(matches!(ask(&guard, Some(USER), "/", &[("host", host)]), Verdict::Refuse(..)), "{host}");
        }
    }

    #[test]
    fn on_loopback_other_users_have_the_metrics_and_need_the_token_for_the_page() {
        let guard = guard("127.0.0.1:7450");
        let local = ("host", "localhost");
        for who in [Some(1001), None] {
            assert!(matches!(ask(&guard, who, "/api/state", &[local]), Verdict::Refuse(..)));
            assert_eq!(ask(&guard, who, "/metrics", &[local]), Verdict::Pass);
            assert!(matches!(ask(&guard, who, "/?token=secret", &[local]), Verdict::Remember(_)));
        }
        assert_eq!(ask(&guard, Some(0), "/", &[local]), Verdict::Pass);
    }

    #[test]
    fn off_loopback_the_token_is_asked_for_and_remembered() {
        let guard = guard("10.0.0.1:7450");
        assert!(matches!(ask(&guard, Some(USER), "/metrics", &[]), Verdict::Refuse(..)));
        assert!(matches!(ask(&guard, None, "/?token=wrong", &[]), Verdict::Refuse(..)));
        assert!(matches!(ask(&guard, None, "/?token=secret", &[]), Verdict::Remember(_)));
        assert_eq!(ask(&guard, None, "/metrics", &[("authorization", "Bearer secret")]), Verdict::Pass);
        assert_eq!(ask(&guard, None, "/", &[("cookie", "a=b; tandem_token=secret")]), Verdict::Pass);
    }
}
