//! Addresses as the user writes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::InvalidValue;

/// Parses where a group listens: `ADDRESS:PORT`, `[ADDRESS]:PORT`, or `:PORT` and `PORT` for every IPv4 address.
///
/// # Errors
///
/// Host names are refused, since they may stand for several addresses; so is port 0, since all sockets of a group
/// must have the same port.
pub fn listen_address(text: &str) -> Result<SocketAddr, InvalidValue> {
    address(text, Ipv4Addr::UNSPECIFIED, "all sockets of a group need the same, fixed port")
}

/// Parses where metrics are served: like [`listen_address`], but `:PORT` and `PORT` mean this host only.
///
/// # Errors
///
/// As for [`listen_address`].
pub fn metrics_address(text: &str) -> Result<SocketAddr, InvalidValue> {
    address(text, Ipv4Addr::LOCALHOST, "nobody would know where the metrics are")
}

/// Parses an address; `bare` is where a port alone is, and `why_not_0` why it may not be 0.
fn address(text: &str, bare: Ipv4Addr, why_not_0: &str) -> Result<SocketAddr, InvalidValue> {
    let bare_port = text.strip_prefix(':').unwrap_or(text);
    let address = if !bare_port.is_empty() && bare_port.bytes().all(|b| b.is_ascii_digit()) {
        SocketAddr::from((bare, port(bare_port)?))
    } else if let Ok(address) = text.parse() {
        address
    } else {
        return Err(InvalidValue(why_no_address(text)));
    };
    if address.port() == 0 {
        return Err(InvalidValue(format!("port 0 cannot be: {why_not_0}")));
    }
    Ok(address)
}

fn port(text: &str) -> Result<u16, InvalidValue> {
    text.parse().map_err(|_| InvalidValue(format!("{text} is not a port: ports end at 65535")))
}

fn why_no_address(text: &str) -> String {
    if text.parse::<Ipv4Addr>().is_ok() {
        return format!("the port is missing: write {text}:8080");
    }
    let in_brackets = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    if let Ok(ip) = in_brackets.unwrap_or(text).parse::<Ipv6Addr>() {
        return format!("the port is missing, or the brackets are: write [{ip}]:8080");
    }
    let Some((host, port_text)) = text.rsplit_once(':') else {
        return "not an address: write ADDRESS:PORT, [ADDRESS]:PORT, :PORT or PORT".into();
    };
    let bare_host = host.trim_start_matches('[').trim_end_matches(']');
    if bare_host.parse::<IpAddr>().is_err() {
        return format!(
            "'{host}' is not an IP address, and host names are not looked up: write 127.0.0.1:8080 or [::]:8080"
        );
    }
    match port(port_text) {
        Err(InvalidValue(why)) => why,
        Ok(_) => format!("IPv6 addresses stand in brackets: write [{bare_host}]:{port_text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_in_each_form() {
        for (text, address) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("8080", "0.0.0.0:8080"),
            (":8080", "0.0.0.0:8080"),
            ("[::]:8080", "[::]:8080"),
            ("[fe80::1%2]:1", "[fe80::1%2]:1"),
        ] {
            assert_eq!(listen_address(text).map(|a| a.to_string()), Ok(address.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_port_for_metrics_is_one_of_this_host() {
        for (text, address) in [
            ("9464", "127.0.0.1:9464"),
            (":9464", "127.0.0.1:9464"),
            ("0.0.0.0:9464", "0.0.0.0:9464"),
            ("[::1]:9464", "[::1]:9464"),
        ] {
            assert_eq!(metrics_address(text).map(|a| a.to_string()), Ok(address.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_refused_address_says_what_would_do() {
        for (text, expected) in [
            ("", "write ADDRESS:PORT"),
            (":", "host names are not looked up"),
            ("0", "port 0"),
            ("127.0.0.1:0", "port 0"),
            ("70000", "70000 is not a port"),
            ("127.0.0.1:70000", "70000 is not a port"),
            ("127.0.0.1:", " is not a port"),
            ("127.0.0.1", "write 127.0.0.1:8080"),
            ("::1", "write [::1]:8080"),
            ("[::1]", "write [::1]:8080"),
            ("1:2:3:4:5:6:7:8:8080", "write [1:2:3:4:5:6:7:8]:8080"),
            ("localhost:8080", "'localhost' is not an IP address"),
            ("*:8080", "'*' is not an IP address"),
            ("web", "not an address"),
        ] {
            let why = listen_address(text).expect_err(text).to_string();
            assert!(why.contains(expected), "{text}: {why}");
        }
    }
}
