//! Servers for tests, in Perl, since every Debian has it.

/// A server that says what it is told to. `before` runs before it accepts anything; `tell "READY=1"` sends a notice.
///
/// It serves one connection after the other, and answers as the built-in worker does. On SIGTERM it ends at once. It
/// answers `/tell?…` by sending what stands behind the question mark, with `;` for the end of a line; `/log?…` writes
/// that to both outputs; `/env?NAME` gives the value of a variable, and `/who` users, groups, folder and limits of open
/// files.
pub fn server(before: &str) -> Vec<String> {
    let script = format!(
        r#"
        use Fcntl; use Socket; use IO::Socket::UNIX; use Time::HiRes qw(sleep); use Cwd;
        $| = 1;
        sub tell_ {{
            socket(my $to, AF_UNIX, SOCK_DGRAM, 0) or die "socket: $!";
            send($to, $_[0], 0, pack_sockaddr_un($ENV{{NOTIFY_SOCKET}})) or die "notify: $!";
        }}
        open(my $listener, "+<&=", 3) or die "descriptor 3: $!";
        fcntl($listener, F_SETFL, 0) or die "blocking mode: $!";
        my $id = $ENV{{REUSEPORT_LB_WORKER}};
        {before}
        while (accept(my $connection, $listener)) {{
            recv($connection, my $request, 4096, 0);
            if ($request =~ m,^GET /tell\?(\S*) ,) {{ my $text = $1; $text =~ tr/;+/\n /; tell_($text); }}
            if ($request =~ m,^GET /log\?(\S*) ,) {{ print "$1\n"; print STDERR "$1\n"; }}
            my $value = "";
            if ($request =~ m,^GET /env\?(\S*) ,) {{ $value = $ENV{{$1}} // "(none)"; }}
            if ($request =~ m,^GET /who ,) {{
                my $limit = `sh -c 'ulimit -Sn; ulimit -Hn'`; $limit =~ tr/\n/ /;
                $value = "$< $> $( " . getcwd() . " $limit";
            }}
            my $body = qq({{"worker":$id,"pid":$$,"value":"$value"}});
            my $head = "HTTP/1.1 200 OK\r\nX-Worker: $id\r\nContent-Length: " . length($body) . "\r\n\r\n";
            send($connection, $head . $body, 0);
            close($connection);
        }}
        "#
    );
    vec!["perl".into(), "-e".into(), script]
}
