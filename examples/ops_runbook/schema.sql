create table runbooks (
    id    int primary key,
    title text not null,
    body  text not null
);
insert into runbooks values
    (1, 'Disk nearly full', 'Remove temporary files that are older than an hour. If that is not enough, call the storage team.'),
    (2, 'Certificate expires', 'Ask the certificate service for a new one and reload the proxy.');
