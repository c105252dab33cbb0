-- Runs once, when docker-compose.yml creates the database: an example table, and the role that follows it.

create table articles (
    id bigint generated always as identity primary key,
    title text not null,
    body text not null,
    lang text not null default 'en',
    published_on date not null default current_date
);

insert into articles (title, body, lang) values
    ('Photosynthesis', 'Plants turn light, water and carbon dioxide into sugar and oxygen. The green pigment '
        'chlorophyll catches the light.', 'en'),
    ('Plate tectonics', 'The crust of the earth is broken into plates that drift some centimetres each year. Where '
        'two of them meet, mountains rise and the ground shakes.', 'en'),
    ('Sauerteig', 'Ein Sauerteig besteht aus Mehl und Wasser, in denen Milchsäurebakterien und Hefen leben. Er macht '
        'Brot locker und haltbar.', 'de');

-- No more than the daemon needs: the log, and to read what it indexes. It owns nothing, so the publication is ours.
\set password `cat /run/secrets/cdc-agent-password`
create role cdc_agent login replication password :'password';
grant select on articles to cdc_agent;
create publication cdc_agent for table articles;
