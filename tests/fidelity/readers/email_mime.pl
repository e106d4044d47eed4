# Reads file names, one a line, and answers each with what Email::MIME finds in the file.
use strict;
use warnings;
use Date::Parse qw(str2time);
use Digest::SHA qw(sha256_hex);
use Email::Address::XS;
use Email::MIME;
use JSON::PP;

local $SIG{__WARN__} = sub { };
$| = 1;
my $json = JSON::PP->new->utf8->allow_nonref;

sub people {
    my $field = shift // "";
    return [ map { [ $_->phrase // $_->comment // "", $_->address // $_->original ] }
          Email::Address::XS->parse($field) ];
}

sub leaves {
    my $part = shift;
    my @children = ( $part->content_type // "" ) =~ m{^\s*message/}i ? () : $part->subparts;
    return @children ? map { leaves($_) } @children : ($part);
}

sub body {
    my $part = shift;
    my $text = eval { $part->body_str };
    return $text if defined $text;
    my $bytes = $part->body;
    return Encode::decode( "UTF-8", $bytes );
}

while ( my $path = <STDIN> ) {
    chomp $path;
    my $found = { path => $path };
    eval {
        local $SIG{ALRM} = sub { die "time" };
        alarm 20;
        open my $file, "<:raw", $path or die $!;
        local $/;
        my $mail = Email::MIME->new( scalar <$file> );
        my ( @texts, @htmls, @files );
        for my $part ( leaves($mail) ) {
            my $type = lc( $part->content_type // "text/plain" );
            $type = "text/plain" if $type !~ m{^\s*[^\s/;]+/[^\s;]+};
            my ($shown) = lc( $part->header("Content-Disposition") // "" ) =~ /^\s*([^\s;]*)/;
            if ( $shown ne "attachment" && $type =~ m{^\s*text/plain} ) { push @texts, body($part) }
            elsif ( $shown ne "attachment" && $type =~ m{^\s*text/html} ) { push @htmls, body($part) }
            else {
                push @files,
                  { name => $part->filename // "", sha256 => sha256_hex( $part->body ) };
            }
        }
        my $date = str2time( $mail->header("Date") // "" );
        $found = {
            path        => $path,
            subject     => $mail->header_str("Subject") // "",
            from        => people( $mail->header_str("From") ),
            to          => people( join ", ", $mail->header_str("To") ),
            date        => defined $date ? int($date) : undef,
            text        => join( "\n", @texts ),
            html        => join( "\n", @htmls ),
            attachments => \@files,
        };
        alarm 0;
        1;
    } or $found = { path => $path, error => "$@" };
    alarm 0;
    print $json->encode($found), "\n";
}
