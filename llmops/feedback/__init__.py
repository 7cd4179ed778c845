"""People's judgement as data: campaigns are opened, rated on a page, and their votes exported as preferences."""
