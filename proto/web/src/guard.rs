//! Who may read the page. On loopback everybody of this machine, but only by a name of it: a foreign page whose name was made to mean
//! 127.0.0.1 (DNS rebinding) is refused. Off loopback who has the token, as `Authorization: Bearer`, as a cookie, or once in the address.

use std::net::{IpAddr, SocketAddr};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header},
};
use tandem_runtime::secret;

const COOKIE: &str = "tandem_token";

/// The rule of one socket.
pub struct Guard {
    loopback: bool,
    token: Option<String>,
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
    /// For a socket, with its token if it needs one.
    pub fn new(address: SocketAddr, token: Option<String>) -> Guard {
        Guard { loopback: address.ip().is_loopback(), token }
    }

    /// Decides about a request.
    pub fn admit(&self, request: &Request<Body>) -> Verdict {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Verdict::Refuse(StatusCode::METHOD_NOT_ALLOWED, "this page only tells\n");
        }
        if self.loopback && !is_local_name(text(request.headers(), header::HOST)) {
            return Verdict::Refuse(StatusCode::FORBIDDEN, "ask for localhost\n");
        }
        let Some(token) = &self.token else {
            return if self.loopback { Verdict::Pass } else { Verdict::Refuse(StatusCode::FORBIDDEN, "no token\n") };
        };
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
        let why = "the token is missing or wrong: it is in the file web-PORT.token of the daemon's runtime directory; ask for /?token=TOKEN\n";
        Verdict::Refuse(StatusCode::UNAUTHORIZED, why)
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};

    use super::{Guard, Verdict};

    fn ask(guard: &Guard, uri: &str, headers: &[(&str, &str)]) -> Verdict {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guard.admit(&request.body(Body::empty()).expect("a request"))
    }

    #[test]
    fn on_loopback_only_names_of_this_machine_are_answered() {
        let guard = Guard::new("127.0.0.1:7450".parse().expect("an address"), None);
        for host in ["localhost:7450", "127.0.0.1:7450", "[::1]:7450", "LOCALHOST"] {
            assert_eq!(ask(&guard, "/", &[("host", host)]), Verdict::Pass, "{host}");
        }
        for host in ["evil.example:7450", "127.0.0.1.evil.example", "", "localhost.evil.example"] {
            assert!(matches!(ask(&guard, "/", &[("host", host)]), Verdict::Refuse(..)), "{host}");
        }
    }

    #[test]
    fn off_loopback_the_token_is_asked_for_and_remembered() {
        let guard = Guard::new("10.0.0.1:7450".parse().expect("an address"), Some("secret".to_owned()));
        assert!(matches!(ask(&guard, "/", &[]), Verdict::Refuse(..)));
        assert!(matches!(ask(&guard, "/?token=wrong", &[]), Verdict::Refuse(..)));
        assert!(matches!(ask(&guard, "/?token=secret", &[]), Verdict::Remember(_)));
        assert_eq!(ask(&guard, "/metrics", &[("authorization", "Bearer secret")]), Verdict::Pass);
        assert_eq!(ask(&guard, "/", &[("cookie", "a=b; tandem_token=secret")]), Verdict::Pass);
    }
}
