create table accounts (
    id        int primary key,
    holder    text not null,
    frozen    boolean not null default false,
    -- Whose decision that was: the idempotency key of the event.
    frozen_by text,
    note      text not null default ''
);
create table purchases (
    id         int primary key,
    account_id int not null references accounts,
    address    text not null,
    bought_at  timestamptz not null default now()
);
insert into accounts (id, holder)
select number, 'Holder ' || number from generate_series(1, 9) as number;
