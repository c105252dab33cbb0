create table questions (
    id       int primary key,
    question text not null,
    answer   text not null
);
insert into questions values (1, 'When are you open?', 'From nine to five.');
